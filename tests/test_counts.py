"""The server's counts, which the maintenance thread asks for over an idle connection, are stalled while a scope ends."""

from __future__ import annotations

import time

import pytest

from django_mysqlpool import auto_close_db
from django_mysqlpool.mysqlpool.backend.scope import Scope
from django_mysqlpool.mysqlpool.pool import tasks
from django_mysqlpool.mysqlpool.pool.connection import PING_TIMEOUT
from tests import DRIVER
from tests.helpers import ask, hold_at_once
from tests.relay import Relay

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]

#: OPTIONS for what a relay is to read.
READABLE = {} if DRIVER == "mysqlclient" else {"ssl_disabled": True}


@pytest.mark.parametrize("release", ["request", "transaction"])
def test_the_end_does_not_wait_and_the_next_one_gets_its_own_answers(release, server, make_alias, monkeypatch):
    monkeypatch.setattr(tasks, "PROBE_INTERVAL", 0.1)
    with Relay(server.host, server.port) as relay:
        pool = {"pool_size": 2, "max_overflow": 0, "timeout": 30, "release": release}
        wrapper = make_alias(pool=pool, PORT=relay.port, options=READABLE)
        hold_at_once(wrapper.alias, 2)
        with Scope() as scope:
            wrapper.set_autocommit(False)
            assert ask(wrapper, "SELECT 1") == 1
            has_stalled = relay.stall_at(lambda data: b"show global status" in data.lower())
            assert has_stalled.wait(30), "the maintenance thread has not asked"
            begin = time.monotonic()
            scope.end()
            assert auto_close_db(lambda: [ask(wrapper, f"SELECT {number}") for number in (42, 43)])() == [42, 43]
            assert time.monotonic() - begin < PING_TIMEOUT - 1
        relay.resume()
        assert [ask(wrapper, f"SELECT {number}") for number in (44, 45)] == [44, 45]
        wrapper.close()
