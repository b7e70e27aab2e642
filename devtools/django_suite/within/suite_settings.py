"""The settings that Django's source has for its own tests, with other databases, which are in the environment."""

import json
import os

from test_sqlite import *

DATABASES = json.loads(os.environ["DJANGO_SUITE_DATABASES"])
TEST_RUNNER = "suite_runner.RecordingRunner"
