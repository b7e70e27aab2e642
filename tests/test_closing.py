"""Closing a connection: it takes a second at most, and is done however little the process has left."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.pool
from django.db import OperationalError, connections, transaction
from MySQLdb.cursors import SSCursor

from django_mysqlpool import close_pool, pool_status
from django_mysqlpool.mysqlpool.pool import fork
from django_mysqlpool.mysqlpool.pool.closing import Farewell
from django_mysqlpool.mysqlpool.pool.fork import ForkBarrier
from django_mysqlpool.mysqlpool.pool.maintenance import PoolMaintenance
from tests.helpers import backend_pid, eventually, hold_at_once, holds, look, mysqlclient_only, status_of, wait_until_gone
from tests.relay import Relay

pytestmark = [pytest.mark.python, pytest.mark.sqlalchemy, pytest.mark.driver]

#: Rows that the server sends for far longer than a close may take.
ENDLESS = "SELECT REPEAT('x', 1000) FROM seven a, seven b, seven c, seven d, seven e, seven f, seven g, seven h, seven i"


def pids_of(observer, wrapper) -> set[int]:
    return observer.connections_of(wrapper.settings_dict["USER"])


def seconds(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """The process may open no file, and no socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def seven(observer) -> Iterator[None]:
    """A table of a few rows, to multiply."""
    observer.query(
        "CREATE TABLE mysqlpool_tests.seven AS SELECT 1 n UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4"
    )
    yield
    observer.query("DROP TABLE mysqlpool_tests.seven")


class TestItsDeadline:
    @mysqlclient_only("PyMySQL's farewell is the same, and its unbuffered cursor another class")
    @holds
    def test_a_server_that_streams_does_not_hold_it(self, make_alias, seven):
        """Each part of an answer used to begin the second anew."""
        wrapper = make_alias(pool={"pool_size": 1})
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor(SSCursor)
        cursor.execute(ENDLESS)
        assert cursor.fetchone()
        assert seconds(wrapper.close) < Farewell.TIMEOUT + 1
        assert status_of(wrapper)["open"] == 0

    def test_many_at_a_frozen_server_take_one_second_together(self, make_alias, server):
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"pool_size": 8}, PORT=relay.port)
            hold_at_once(wrapper.alias, 8)
            relay.stall()
            assert seconds(lambda: close_pool(wrapper.alias)) < 2 * Farewell.TIMEOUT
            assert status_of(wrapper)["open"] == 0

    def test_a_server_that_answers_again_is_waited_for_again(self, make_alias, server, observer, monkeypatch):
        monkeypatch.setattr(Farewell, "SILENCE", 0.0)
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"pool_size": 3}, PORT=relay.port)
            hold_at_once(wrapper.alias, 3)
            relay.stall()
            close_pool(wrapper.alias)
            relay.resume()
            eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids)
            look(wrapper.alias)
            close_pool(wrapper.alias)
            assert not pids_of(observer, wrapper)

    @holds
    def test_a_network_that_takes_no_more_does_not_hold_it(self, make_alias, server):
        """The driver writes its farewell without a time limit."""
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"pool_size": 1}, PORT=relay.port)
            wrapper.ensure_connection()
            relay.stall()
            session = wrapper.lease.session
            fill(session.descriptor)
            session.note_call(2, "UNLOCK")  # not to be cleaned: it is closed
            wrapper.lease.is_broken = True
            closing = threading.Thread(target=wrapper.check_in, daemon=True)
            closing.start()
            closing.join(3 * Farewell.TIMEOUT)
            assert not closing.is_alive()
            assert status_of(wrapper)["open"] == 0


def fill(descriptor: int) -> None:
    """Send until the network takes no more."""
    end = socket.socket(fileno=descriptor)
    end.setblocking(False)
    try:
        while True:
            end.send(b"x" * 65536)
    except BlockingIOError:
        pass
    finally:
        end.setblocking(True)
        end.detach()


POOLS: dict[str, Any] = {
    "QueuePool": {"pool_size": 6},
    "SQLAlchemy's QueuePool": {"pool_class": "sqlalchemy.pool.QueuePool", "pool_size": 6},
}


class TestOutOfDescriptors:
    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_close_pool_closes(self, make_alias, observer, pool):
        wrapper = make_alias(pool=pool)
        hold_at_once(wrapper.alias, 6)
        assert len(pids_of(observer, wrapper)) == 6
        gc.disable()  # which would close them, later
        try:
            with no_descriptor_left():
                close_pool(wrapper.alias)
                assert status_of(wrapper)["open"] == 0
            eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids, seconds=5)
        finally:
            gc.enable()

    @holds
    def test_a_checkin_closes_what_can_not_be_cleaned(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        wrapper.ensure_connection()
        wrapper.lease.is_broken = True
        gc.disable()
        try:
            with no_descriptor_left():
                wrapper.close()
            eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids, seconds=5)
        finally:
            gc.enable()
        assert backend_pid(wrapper)

    def test_the_maintenance_thread_trims(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 3, "idle_timeout": 0.7})
        hold_at_once(wrapper.alias, 3)
        with no_descriptor_left():
            eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids, seconds=10)

    def test_a_child_cuts_off_what_it_inherited(self, make_alias, monkeypatch):
        """(In this process: what a child does is done to a connection that nobody uses any more.)"""
        monkeypatch.setattr(PoolMaintenance, "run", lambda chores: None)  # it would see that the server is gone, and close
        wrapper = make_alias(pool={"pool_size": 1})
        look(wrapper.alias)
        (session,) = wrapper.pool.sessions
        taken: list[int] = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        try:
            fork._redirect(session)
        finally:
            for descriptor in taken:
                os.close(descriptor)
        assert not session.has_its_socket()
        assert os.fstat(session.descriptor).st_rdev == Path(os.devnull).stat().st_rdev
        close_pool(wrapper.alias)


class TestOutOfMemory:
    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
    def test_what_comes_before_the_close_does_not_prevent_it(self, make_alias, observer, monkeypatch, error):
        wrapper = make_alias(pool={"pool_size": 2})
        hold_at_once(wrapper.alias, 2)

        def fail(barrier: ForkBarrier, operation: object) -> None:
            raise error

        gc.disable()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(ForkBarrier, "begin", fail)
                for _ in range(3):  # an interrupt ends each, as it should, whatever its class
                    with suppress(error):
                        close_pool(wrapper.alias)
            assert status_of(wrapper)["open"] == 0
            eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids, seconds=5)
        finally:
            gc.enable()
        assert backend_pid(wrapper)

    @holds
    def test_an_interrupted_close_lends_no_dirty_session(self, make_alias, monkeypatch):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 2})
        with wrapper.cursor() as cursor:
            cursor.execute("SET @left = 7")
        wrapper.lease.is_broken = True

        with monkeypatch.context() as patch:
            patch.setattr(wrapper.pool.connector, "barrier", None)  # AttributeError before the close
            with pytest.raises(AttributeError):
                wrapper.close()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @left")
            assert cursor.fetchone() == (None,)


class TestOutOfThreads:
    def test_the_end_of_a_coroutine_still_gives_back(self, make_alias, monkeypatch):
        from django_mysqlpool.mysqlpool.backend.scope import Scope
        from django_mysqlpool.threading_utils import work

        wrapper = make_alias(pool={"reset": "always"})
        scope = Scope()
        with scope:
            wrapper.ensure_connection()

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        asyncio.run(work.end_from_event_loop(scope))
        assert status_of(wrapper)["out"] == 0


class OwnQueuePool(sqlalchemy.pool.QueuePool):
    """A user's."""


class OwnPool(sqlalchemy.pool.NullPool):
    """Another one."""


FOREIGN = [
    "NullPool",
    "AssertionPool",
    "SingletonThreadPool",
    "sqlalchemy.pool.QueuePool",
    f"{__name__}.OwnQueuePool",
    f"{__name__}.OwnPool",
]


class TestForeignPools:
    @pytest.mark.parametrize("pool_class", [*FOREIGN, "StaticPool"])
    def test_closed_from_several_threads_while_it_is_used(self, make_alias, observer, pool_class):
        arguments = {"pool_size": 20} if pool_class == "SingletonThreadPool" else {}
        wrapper = make_alias(pool={"pool_class": pool_class, **arguments})
        users = 1 if pool_class in ("AssertionPool", "StaticPool") else 4
        until = time.monotonic() + 2
        served = [0]

        def use() -> None:
            own = connections[wrapper.alias]
            while time.monotonic() < until:
                assert backend_pid(own)
                own.close()
                with transaction.atomic(wrapper.alias), own.cursor() as cursor:
                    cursor.execute("SELECT 1")
                    assert cursor.fetchone() == (1,)
                own.close()
                served[0] += 1

        def close() -> None:
            while time.monotonic() < until:
                close_pool(wrapper.alias)
            connections.close_all()

        with ThreadPoolExecutor(users + 3) as executor:
            closers = [executor.submit(close) for _ in range(3)]
            for work in [*closers, *[executor.submit(use) for _ in range(users)]]:
                work.result(timeout=30)
        assert served[0]
        close_pool(wrapper.alias)
        assert status_of(wrapper)["open"] == 0
        eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids)

    @pytest.mark.parametrize(
        "pool_class", ["AssertionPool", "SingletonThreadPool", "StaticPool", "sqlalchemy.pool.QueuePool"]
    )
    def test_what_is_idle_is_closed_at_once(self, make_alias, observer, pool_class):
        wrapper = make_alias(pool={"pool_class": pool_class})
        look(wrapper.alias)
        assert pids_of(observer, wrapper)
        close_pool(wrapper.alias)
        wait_until_gone(observer, wrapper)

    @holds
    @pytest.mark.parametrize("pool_class", FOREIGN)
    def test_what_is_out_goes_on_and_is_closed_at_its_checkin(self, make_alias, observer, pool_class):
        wrapper = make_alias(pool={"pool_class": pool_class})
        pid = backend_pid(wrapper)
        with ThreadPoolExecutor(1) as executor:
            executor.submit(close_pool, wrapper.alias).result(timeout=10)
        assert backend_pid(wrapper) == pid
        wrapper.close()
        wait_until_gone(observer, wrapper)

    def test_one_that_is_just_being_lent_is_not_closed(self, make_alias):
        """From the moment at which the pool has found it fit."""
        wrapper = make_alias(pool={"pool_class": "AssertionPool"})
        look(wrapper.alias)
        pool = wrapper.pool
        before = pool.source.pool.connect()
        assert pool.source.handed_out
        with ThreadPoolExecutor(1) as executor:
            executor.submit(close_pool, wrapper.alias).result(timeout=10)
        with before.cursor() as cursor:
            cursor.execute("SELECT 1")
        pool.source.release(before, keep=True)
        assert not pool.source.handed_out
        close_pool(wrapper.alias)
        assert status_of(wrapper)["open"] == 0


def test_a_server_that_is_gone_costs_the_error_only(make_alias, server):
    with Relay(server.host, server.port) as relay:
        wrapper = make_alias(pool={"pool_size": 2}, PORT=relay.port)
        hold_at_once(wrapper.alias, 2)
        relay.reset()
        assert seconds(lambda: close_pool(wrapper.alias)) < Farewell.TIMEOUT
        assert pool_status()[wrapper.pool.name]["open"] == 0
    with pytest.raises(OperationalError):
        look(wrapper.alias)
