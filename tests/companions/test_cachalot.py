"""django-cachalot: it caches queries of engines that it knows by name, and has to be told of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import django
import pytest

from tests.companions import needs

pytestmark = pytest.mark.companion

needs("cachalot")

ASK = """
import json
import django
django.setup()
from django.core.checks import run_checks
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_mysqlpool import pool_status
from tests.shop.models import Account

def sent(ask):
    with CaptureQueriesContext(connection) as queries:
        ask()
    connection.close()
    return len(queries)

ask = lambda: list(Account.objects.filter(name="nobody"))
counts = [sent(ask), sent(ask)]
Account.objects.create(name="somebody", balance=1).delete()
counts.append(sent(ask))
connection.close()
(status,) = pool_status().values()
print(json.dumps({"sent": counts, "checks": [m.id for m in run_checks() if "cachalot" in m.id], "out": status["out"]}))
"""


def answer(**environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.companions.sites.cachalot", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_does_not_know_the_engine_by_itself():
    checks = ["cachalot.W002"] if django.VERSION < (6, 1) else []  # where Django does not run cachalot's check
    assert answer() == {"sent": [1, 1, 1], "checks": checks, "out": 0}


def test_told_of_the_engine_it_caches_until_a_write():
    assert answer(MYSQLPOOL_TEST_CACHALOT="1") == {"sent": [1, 0, 1], "checks": [], "out": 0}
