"""Django settings of the tests; which database server they use is in the environment, put there by ``conftest.py``."""

import json
import os

from tests.corpus import record_if_wanted

SECRET_KEY = "tests"
USE_TZ = True
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "tests.shop"]
MIDDLEWARE = ["django_mysqlpool.middleware.ConnectionReleaseMiddleware"]
if "MYSQLPOOL_TEST_BARE" in os.environ:
    # As a site whose release is left to the wrapper around its application.
    MIDDLEWARE = []
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ENGINE = "django_mysqlpool.backends.mysqlpool"
# An entry of DATABASES; a static one where only the types are checked.
_entry = json.loads(os.environ.get("MYSQLPOOL_TEST_DATABASE", "{}"))
DATABASES = {"default": {"ENGINE": ENGINE, **_entry}}
# The whole suite in the other mode: MYSQLPOOL_TEST_RELEASE=transaction.
MYSQLPOOL_ARGUMENTS = {"release": os.environ.get("MYSQLPOOL_TEST_RELEASE", "request")}
record_if_wanted()
