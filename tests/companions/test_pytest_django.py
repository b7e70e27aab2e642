"""pytest-django, in a project of its own: it blocks the database, opens it for some tests, and undoes what they write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.companions import CAP, needs
from tests.helpers import DATABASE

needs("pytest_django")

pytestmark = pytest.mark.companion

SUITE = Path(__file__).parent / "sites" / "pytest_django_suite.py"


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with the tests and with pytest's settings, as a site has it."""
    shutil.copy(SUITE, tmp_path / "test_shop.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = tests.settings\nfilterwarnings = error\n")
    return tmp_path


def test_its_fixtures(project, server, observer, pytestconfig):
    """Over two connections, and one with which Django makes and drops the database; the server would refuse another."""
    user, password = observer.create_user(CAP + 1)
    entry = {**server.settings(DATABASE, pool={"pool_size": CAP, "max_overflow": 0}), "USER": user, "PASSWORD": password}
    environment = {**os.environ, "MYSQLPOOL_TEST_DATABASE": json.dumps(entry), "PYTHONPATH": str(pytestconfig.rootpath)}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "."]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout
    assert observer.connections_of(user) == set()
    assert observer.query("SHOW DATABASES LIKE %s", f"test_{DATABASE}") == []
