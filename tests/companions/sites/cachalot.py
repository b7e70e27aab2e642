"""The tests' site with django-cachalot, which is told of the pooled engine if the environment says so."""

import os

from tests.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "cachalot"]  # noqa: F405
if "MYSQLPOOL_TEST_CACHALOT" in os.environ:
    CACHALOT_ADDITIONAL_SUPPORTED_DATABASES = {"django_mysqlpool.backends.mysqlpool"}
