"""Settings of a site with Django's debug toolbar, which keeps what it has seen in the database or in memory."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE

DEBUG = True
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.staticfiles", "debug_toolbar"]
# The toolbar stands outside what it looks at, and inside what gives connections back: it asks the database too.
MIDDLEWARE = [*MIDDLEWARE, "debug_toolbar.middleware.DebugToolbarMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
ROOT_URLCONF = "tests.companions.sites.toolbar_urls"
DEBUG_TOOLBAR_CONFIG = {
    "IS_RUNNING_TESTS": False,
    "SHOW_TOOLBAR_CALLBACK": "tests.companions.sites.toolbar_urls.is_shown",
    "TOOLBAR_STORE_CLASS": f"debug_toolbar.store.{os.environ.get('MYSQLPOOL_TEST_TOOLBAR_STORE', 'MemoryStore')}",
}
