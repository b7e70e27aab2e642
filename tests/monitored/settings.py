"""Settings of a site with the status page, and members of staff. Sessions are in memory: users are in the database."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, MIDDLEWARE

MIDDLEWARE = [
    *MIDDLEWARE,
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "tests.monitored.urls"
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
LOGIN_URL = "/login/"
MYSQLPOOL_STATUS_TOKEN = "a-token-of-the-tests"
# Each view would begin with a connection.
DATABASES = {alias: {**entry, "ATOMIC_REQUESTS": True} for alias, entry in DATABASES.items()}
if "MYSQLPOOL_TEST_EVERYBODY" in os.environ:
    MYSQLPOOL_STATUS_ACCESS = "tests.monitored.urls.everybody"
