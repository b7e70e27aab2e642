"""Settings for Django's tests, as ``tests/test_sqlite.py`` of its source has them; the databases are in the environment."""

import json
import os

DATABASES = json.loads(os.environ["DJANGO_SUITE_DATABASES"])
TEST_RUNNER = "suite_runner.RecordingRunner"

SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
