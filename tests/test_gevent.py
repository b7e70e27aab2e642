"""Under gevent: threads are greenlets, and with PyMySQL those that wait for the server let the others run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import eventually
from tests.shop.models import Account

pytestmark = [pytest.mark.python, pytest.mark.slow]

VIEWS = {
    "/count/": 200,
    "/write/": 200,
    "/fail/": 500,
    "/missing/": 404,
    "/leave-open/": 200,
    "/leave-atomic/": 200,
    "/leave-dirty/": 200,
    "/slow/": 200,
    "/stream/": 200,
    "/file/": 200,
    "/threads/": 200,
    "/executor/": 200,
    "/interrupted/": 200,
    "/interrupted-block/": 200,
    "/killed/": 200,
    "/forgetful/": 200,
}
CAP = {"pool_size": 4, "max_overflow": 1, "timeout": 60}


@pytest.fixture
def start(serve):
    def start(**arguments):
        return serve("gunicorn gevent", MYSQLPOOL_TEST_DRIVER="pymysql", **arguments)

    return start


def test_each_request_gives_back_what_it_took(start):
    site = start()
    for path, code in VIEWS.items():
        assert site.get(path).status_code == code, path
        site.wait_until_none_is_out()
    assert not Account.objects.filter(name="never committed").exists()


def test_a_storm(start, observer):
    """1,000 requests of every awkward kind; a third of the clients hang up in the middle."""
    site = start(pool={**CAP, "idle_timeout": 1}, at_most=5)
    paths = [*VIEWS, "/stream-fails/", "/count/", "/count/", "/count/"] * 50
    answers = site.storm(paths, leave=lambda number: number % 3 == 0)
    assert answers[0] == len(paths) // 3 + 1
    assert set(answers) <= {0, -1, 200, 404, 500}
    site.wait_until_none_is_out()
    # What the views themselves raise, what gunicorn says of a client that left, and what SQLAlchemy says of an interrupt
    # that arrives while a connection is being closed.
    expected = r"the (view|stream) fails|BrokenPipe|ConnectionReset|gevent.timeout.Timeout|Exception terminating"
    errors = {line for line in site.log.read_text().splitlines() if re.match(r"\S*(Error|Exception|Timeout)\b", line)}
    assert not {line for line in errors if not re.search(expected, line)}
    assert not Account.objects.filter(name="never committed").exists()
    # The maintenance, a greenlet here, closes what is idle.
    eventually(lambda: observer.connections_of(site.user), lambda ids: not ids)


def test_who_waits_for_the_server_lets_others_run(start):
    site = start(pool={**CAP, "pool_size": 1, "max_overflow": 0})
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(site.get, "/block/?seconds=2")
        eventually(site.out, lambda out: out == 1)
        second = clients.submit(site.get, "/count/")  # waits for the one connection
        eventually(lambda: [pool["waiting"] for pool in site.status()["pools"].values()], lambda waiting: waiting == [1])
        assert not first.done()
        assert (first.result().status_code, second.result().status_code) == (200, 200)


CHECK = """
from gevent import monkey
monkey.patch_all()
import django, logging
logging.basicConfig()
django.setup()
from django.core.checks import run_checks
from django.db import connection
print([message.id for message in run_checks()])
connection.ensure_connection()
"""


@pytest.mark.parametrize("driver", ["mysqlclient", "pymysql"])
def test_a_driver_that_blocks_the_loop_is_told_of(driver):
    environment = {**os.environ, "MYSQLPOOL_TEST_DRIVER": driver}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=60)
    blocks = driver == "mysqlclient"
    assert done.stdout == f"{['django_mysqlpool.W006'] if blocks else []}\n", done.stderr
    assert done.stderr.count("stops every greenlet until it is answered") == blocks


def test_a_site_that_ends_closes_its_connections(start, observer):
    site = start()
    assert site.storm(["/count/"] * 20) == {200: 20}
    assert observer.connections_of(site.user)
    begin = time.monotonic()
    site.process.stop()
    assert time.monotonic() - begin < 30
    eventually(lambda: observer.connections_of(site.user), lambda ids: not ids)
    assert "Traceback" not in site.log.read_text()
