"""The tests' settings for ``manage.py mysqlpool`` and the processes that it looks at: with the application."""

import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "django_mysqlpool"]
#: Further aliases.
DATABASES |= json.loads(os.environ.get("MYSQLPOOL_TEST_DATABASES", "{}"))
if "MYSQLPOOL_TEST_STATUS_FOLDER" in os.environ:
    MYSQLPOOL_STATUS_FOLDER = json.loads(os.environ["MYSQLPOOL_TEST_STATUS_FOLDER"])
