"""What several modules of tests use: marks, an observer of the server, and small deeds with a wrapper.

Each helper that waits has a deadline, and says at its end what it has waited for.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy.pool
from django.db import DatabaseError, connections
from MySQLdb.constants import CLIENT

from devtools.server import Server
from django_mysqlpool import hold_connection, pool_status
from django_mysqlpool.mysqlpool.log import tell
from tests import DRIVER

DATABASE = "mysqlpool_tests"
#: For names that no two tests share.
numbers = itertools.count(1)

#: What the pools of the tests' aliases have for ``release``, unless a test says otherwise.
RELEASE = os.environ.get("MYSQLPOOL_TEST_RELEASE", "request")
#: For a test about a connection that stays out between statements.
holds = pytest.mark.skipif(RELEASE == "transaction", reason="about a connection that is held for a request")
#: OPTIONS for a test that sends several statements in one string, which PyMySQL does only if it is told to.
SEVERAL_STATEMENTS = {} if DRIVER == "mysqlclient" else {"client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS}


def mysqlclient_only(reason: str) -> pytest.MarkDecorator:
    """For a test that rests on mysqlclient; ``reason`` says on what of it."""
    return pytest.mark.skipif(DRIVER != "mysqlclient", reason=reason)


def eventually(look: Callable[[], Any], is_so: Callable[[Any], bool], seconds: float = 30) -> Any:
    """Wait for what is on its way, and return it; tell what was seen if it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so(seen := look()):
        assert time.monotonic() < deadline, f"still, after {seconds} s: {seen}"
        time.sleep(0.001)  # who looks again at once leaves no lock, and no processor, to those whom it waits for
    return seen


def tell_all() -> None:
    """Have everything logged, and sent, that has been said; what another thread is just logging is waited for."""
    tell()

    def tellers() -> list[int]:
        stacks = {ident: traceback.walk_stack(frame) for ident, frame in sys._current_frames().items()}
        own = threading.get_ident()
        return [
            ident
            for ident, stack in stacks.items()
            if ident != own and any(frame.f_code is tell.__code__ for frame, _ in stack)
        ]

    eventually(tellers, lambda found: not found)


class Observer:
    """Looks at the server from outside any pool."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = server.connect()

    def query(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall())

    def connections_of(self, user: str) -> set[int]:
        """The server's ids of the connections of a user."""
        rows = self.query("SELECT id FROM information_schema.processlist WHERE user = %s", user)
        return {row[0] for row in rows}

    def create_user(self, at_most: int = 0) -> tuple[str, str]:
        """A user of its own for a test, so that the test's connections can be told apart on the server.

        The server refuses a connection beyond ``at_most`` (0: no limit), which proves a cap better than counting does.
        """
        name, password = f"pool_{os.getpid()}_{next(numbers)}", "s3cret-of-a-test"
        self.query(f"CREATE USER '{name}'@'%%' IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS {at_most}")
        self.query(f"GRANT ALL ON *.* TO '{name}'@'%%'")
        return name, password

    def close(self) -> None:
        self._connection.close()


def backend_pid(wrapper) -> int:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]


def status_of(wrapper) -> dict:
    name = wrapper.pool.name  # makes the pool, where nothing has yet
    return pool_status()[name]


def wrong_sums(counts: dict[str, Any]) -> list[str]:
    """What does not add up in the statistics of a pool."""
    wrong = []
    if counts["opened"] != sum(counts["closed"].values()) + counts["open"]:
        wrong.append(f"opened: {counts}")
    if counts["checkouts"] != counts["checkins"] + counts["out"]:
        wrong.append(f"checkouts: {counts}")
    if counts["open"] != counts["idle"] + counts["out"]:
        wrong.append(f"open: {counts}")
    return wrong


def fetch(wrapper, sql: str) -> list[tuple[Any, ...]]:
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def succeeds(wrapper, sql: str) -> bool:
    try:
        fetch(wrapper, sql)
    except DatabaseError:
        return False
    return True


def wait_until_gone(observer: Observer, wrapper: Any) -> None:
    """Wait for the server to notice that the connections of this alias' user were closed."""
    eventually(lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda ids: not ids)


def in_thread_holding(alias: str, action) -> int:
    """Run ``action`` here while another thread holds a connection of ``alias``; the id of that connection."""
    held, done, seen = threading.Event(), threading.Event(), []

    def hold():
        with hold_connection(alias):
            seen.append(backend_pid(connections[alias]))
            held.set()
            done.wait(timeout=60)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(timeout=60)
        action()
    finally:
        done.set()
        thread.join()
    return seen[0]


def look(alias: str) -> int:
    """The server's id of a connection, which is returned."""
    with closing(connections[alias]) as own:
        return backend_pid(own)


def hold_at_once(alias: str, number: int) -> None:
    """Have as many connections opened, and returned."""
    barrier = threading.Barrier(number, timeout=60)

    def hold() -> None:
        own = connections[alias]
        own.ensure_connection()
        barrier.wait()
        own.close()

    threads = [threading.Thread(target=hold) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# What differs between any two connections, or counts what was done; none of it is a borrower's doing to the next.
COUNTERS = {
    "error_count",
    "gtid_next",
    "gtid_seq_no",
    "identity",
    "insert_id",
    "last_gtid",
    "last_insert_id",
    "pseudo_slave_mode",
    "pseudo_thread_id",
    "rand_seed1",
    "rand_seed2",
    "statement_id",
    "timestamp",
    "transaction_allow_batching",
    "warning_count",
}
OTHER_DATABASE = "mysqlpool_tests_other"


def snapshot(wrapper) -> dict[str, Any]:
    """All that a borrower could notice of its session."""
    variables = {name: value for name, value in fetch(wrapper, "SHOW SESSION VARIABLES") if name not in COUNTERS}
    # (MariaDB has a variable for its open transaction, in_transaction; MySQL has a table.)
    transactions = (
        ""
        if wrapper.mysql_is_mariadb
        else ("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()")
    )
    return {
        **variables,
        "a transaction": transactions and fetch(wrapper, transactions),
        "user variables": fetch(wrapper, "SELECT @a, @b, @c, @d, @e"),
        "database": fetch(wrapper, "SELECT DATABASE()"),
        "autocommit": wrapper.get_autocommit(),
        "locks": fetch(
            wrapper, "SELECT IS_USED_LOCK('lock_a') = CONNECTION_ID(), IS_USED_LOCK('lock_b') = CONNECTION_ID()"
        ),
        "a temporary table": succeeds(wrapper, "SELECT * FROM tmp_a"),
        "a hiding temporary table": not succeeds(wrapper, "SELECT balance FROM shop_account LIMIT 1"),
        "a prepared statement": succeeds(wrapper, "EXECUTE p1"),
        "an open handler": succeeds(wrapper, "HANDLER h1 READ FIRST"),
        "a lock on tables": not succeeds(wrapper, "SELECT COUNT(*) FROM auth_user"),
        "an XA transaction": succeeds(wrapper, "XA END 'x1'"),
    }


class Snapshot(dict):
    """A snapshot that does not fill the screen where a test fails."""

    def __repr__(self) -> str:
        return f"<a new session of {len(self)} facts>"


class CustomPool(sqlalchemy.pool.QueuePool):
    """A pool class of the user's own."""

    def __init__(self, creator: Any, fussy: bool = False, **arguments: Any) -> None:
        if fussy:
            raise ValueError("fussy")
        super().__init__(creator, **arguments)


def discard(error: Exception, alias: str) -> bool:
    return True


def keep(error: Exception, alias: str) -> bool:
    return False


def ask(wrapper: Any, sql: str) -> Any:
    """The first value of the answer."""
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]
