"""The maintenance thread: it can't be lost, holds nothing, and one pool's frozen server is not another's trouble."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from django_mysqlpool import close_pool
from django_mysqlpool.mysqlpool import log
from django_mysqlpool.mysqlpool.pool import reports, tasks
from django_mysqlpool.mysqlpool.pool.maintenance import PoolMaintenance, maintenance
from django_mysqlpool.mysqlpool.pool.pressure import Pressure
from tests.helpers import backend_pid, eventually, hold_at_once, holds, look, status_of
from tests.relay import Relay

pytestmark = pytest.mark.python


def forget(alias: str) -> None:
    """Have a thread end with a connection out; its wrapper outlives it."""
    kept: list[Any] = []

    def work() -> None:
        connections[alias].ensure_connection()
        kept.append(connections[alias])

    thread = threading.Thread(target=work, name="forgetful")
    thread.start()
    thread.join()
    threads_own.extend(kept)


threads_own: list[Any] = []


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    threads_own.clear()
    maintenance._next_start = 0.0
    maintenance._has_told_failure = False
    log.unsaid.clear()


def none_at_work() -> None:
    close_pool()
    eventually(lambda: maintenance.thread, lambda thread: thread is None)


class TestItsStart:
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_an_interrupted_one_is_made_up_for(self, make_alias, monkeypatch, when):
        """A signal's handler may raise before the thread has been started, and when it has been."""
        wrapper = make_alias()
        none_at_work()
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            if thread.name == "mysqlpool-housekeeper":
                if when == "after":
                    start(thread)
                raise KeyboardInterrupt
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                wrapper.ensure_connection()
        wrapper.close()
        look(wrapper.alias)
        assert maintenance.thread.is_alive()
        forget(wrapper.alias)
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0, seconds=5)

    def test_one_that_has_died_is_replaced(self, make_alias):
        wrapper = make_alias()
        none_at_work()
        maintenance.thread = threading.Thread(target=lambda: None)  # as an interrupt may leave it
        wrapper.ensure_connection()
        # (It may just be handing over to another one.)
        eventually(lambda: maintenance.thread, lambda thread: thread is not None and thread.is_alive())

    def test_where_there_is_no_thread_to_be_had_it_says_so_once_and_tries_later(self, make_alias, monkeypatch, caplog):
        wrapper = make_alias()
        none_at_work()
        start = threading.Thread.start
        tries = []

        def refused(thread: threading.Thread) -> None:
            if thread.name == "mysqlpool-housekeeper":
                tries.append(thread)
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            for _ in range(50):
                look(wrapper.alias)
            assert len(tries) == 1
            maintenance._next_start = 0.0
            look(wrapper.alias)
            assert len(tries) == 2
        told = [record.getMessage() for record in caplog.records if "could not be started" in record.getMessage()]
        assert len(told) == 1
        assert "can't start new thread" in told[0]
        maintenance._next_start = 0.0
        look(wrapper.alias)
        assert maintenance.thread.is_alive()

    def test_at_the_interpreters_end_it_says_nothing(self, make_alias, monkeypatch, caplog):
        wrapper = make_alias()
        none_at_work()
        monkeypatch.setattr(maintenance, "_is_at_exit", True)

        def refused(thread: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            look(wrapper.alias)
        assert not caplog.records

    def test_with_no_thread_to_hand_over_to_it_goes_on_alone(self, make_alias, monkeypatch):
        wrapper = make_alias(pool={"idle_timeout": 0.1})
        look(wrapper.alias)
        start = threading.Thread.start

        def refused(thread: threading.Thread) -> None:
            if thread.name == "mysqlpool-housekeeper":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refused)
        eventually(lambda: status_of(wrapper)["open"], lambda number: number == 0, seconds=5)


class IntoDatabase(logging.Handler):
    """Writes each message by the calling thread's wrapper for an alias."""

    def __init__(self, alias: str) -> None:
        super().__init__(logging.INFO)
        self.alias = alias
        self.written: list[tuple[str, str]] = []
        self.lost: list[Exception] = []
        self._local = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._local, "is_writing", False):
            return
        self._local.is_writing = True
        try:
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT %s", [record.getMessage()])
            self.written.append((threading.current_thread().name, record.getMessage()))
        except Exception as error:
            self.lost.append(error)
        finally:
            self._local.is_writing = False


@pytest.fixture
def into_database() -> Iterator[Any]:
    logger = logging.getLogger("django_mysqlpool")
    handlers = []

    def use(alias: str) -> IntoDatabase:
        handler = IntoDatabase(alias)
        logger.addHandler(handler)
        handlers.append(handler)
        return handler

    level = logger.level
    logger.setLevel(logging.INFO)
    yield use
    logger.setLevel(level)
    for handler in handlers:
        logger.removeHandler(handler)


class TestAHandlerThatWritesThroughTheORM:
    def test_what_the_maintenance_thread_takes_for_it_comes_back(self, make_alias, into_database):
        wrapper, logs = make_alias(pool={"pool_size": 1, "max_overflow": 0}), make_alias(pool={"pool_size": 1})
        handler = into_database(logs.alias)
        forget(wrapper.alias)
        eventually(lambda: handler.written, lambda written: any("never given back" in text for _, text in written))
        eventually(lambda: status_of(logs)["out"], lambda out: out == 0, seconds=5)
        assert not handler.lost

    def test_also_of_an_alias_that_is_not_pooled(self, make_alias, into_database, observer):
        wrapper, logs = make_alias(), make_alias(ENGINE="django.db.backends.mysql")
        handler = into_database(logs.alias)
        forget(wrapper.alias)
        eventually(lambda: handler.written, bool)
        eventually(lambda: observer.connections_of(logs.settings_dict["USER"]), lambda pids: not pids, seconds=5)

    @holds
    def test_one_that_waits_for_a_connection_holds_up_no_other_pool(self, make_alias, into_database):
        """The only connection is out for too long, which is to be logged over that very connection."""
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "leak_after": 0.1, "timeout": 8})
        other = make_alias()
        handler = into_database(wrapper.alias)
        wrapper.ensure_connection()
        eventually(lambda: status_of(wrapper)["waiting"], bool)
        begin = time.monotonic()
        forget(other.alias)
        eventually(lambda: status_of(other)["out"], lambda out: out == 0)
        assert time.monotonic() - begin < 4
        wrapper.close()
        eventually(lambda: handler.written, lambda written: any("has been out" in text for _, text in written))
        logging.getLogger("django_mysqlpool").removeHandler(handler)  # there may be more to say
        eventually(lambda: (log.unsaid or maintenance._is_telling, status_of(wrapper)["out"]), lambda at: not any(at))

    @holds
    @pytest.mark.parametrize("how", ["close", "check_in", "scope", "atomic"])
    def test_it_may_use_the_wrapper_that_is_being_given_back(self, make_alias, into_database, how):
        """It is told that a connection which was out for too long is back, in the thread that had it."""
        from django_mysqlpool.mysqlpool.backend.scope import Scope

        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "leak_after": 0.01, "timeout": 2})
        handler = into_database(wrapper.alias)
        scope = Scope()
        with scope:
            pid = backend_pid(wrapper)
            with wrapper.cursor() as cursor:
                cursor.execute("SET @mine = 1")
        reports.leaking.add(wrapper.lease)
        if how == "atomic":
            with pytest.raises(Exception, match="."), transaction.atomic(wrapper.alias):
                wrapper.close()
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT 1")
            wrapper.close()
        else:
            {"close": wrapper.close, "check_in": wrapper.check_in, "scope": scope.end}[how]()
        if how != "atomic":
            assert [text for _, text in handler.written if "is back after" in text]
        if how in ("close", "check_in"):
            assert wrapper.connection is None
            assert wrapper.lease is None
            assert status_of(wrapper)["out"] == 0
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @mine, CONNECTION_ID()")
            answer = cursor.fetchone()
        assert answer[0] is None
        assert how == "atomic" or answer[1] == pid
        wrapper.close()
        eventually(lambda: status_of(wrapper), lambda status: status["out"] == 0 and status["open"] <= 1, seconds=5)

    def test_a_thread_that_waits_and_takes_back_loses_no_slot(self, make_alias, into_database, monkeypatch):
        """It logs what it took back, and its own wrapper is just connecting."""
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10})
        handler = into_database(wrapper.alias)
        monkeypatch.setattr(PoolMaintenance, "run", lambda chores: None)  # so that it is the thread that waits
        forget(wrapper.alias)
        look(wrapper.alias)
        eventually(lambda: handler.written, lambda written: any("never given back" in text for _, text in written))
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0, seconds=5)
        for _ in range(3):
            look(wrapper.alias)

    @holds
    def test_the_word_about_a_thread_that_can_not_be_started_comes_when_nothing_is_being_done(
        self, make_alias, into_database, monkeypatch
    ):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 2})
        handler = into_database(wrapper.alias)
        none_at_work()
        start = threading.Thread.start

        def refused(thread: threading.Thread) -> None:
            if thread.name == "mysqlpool-housekeeper":
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with transaction.atomic(wrapper.alias):
                backend_pid(wrapper)
                assert not handler.written
            wrapper.close()
            assert len(handler.written) == 1
            assert status_of(wrapper)["out"] == 0
        assert not handler.lost

    def test_one_that_always_brings_something_new_does_not_go_on_for_ever(self, make_alias):
        """A handler whose own work leads to the next message."""

        class Echo(logging.Handler):
            number = 0

            def emit(self, record: logging.LogRecord) -> None:
                self.number += 1
                log.say(logging.WARNING, "again")

        logger, echo = logging.getLogger("django_mysqlpool"), Echo()
        logger.addHandler(echo)
        try:
            log.say(logging.WARNING, "once")
            log.tell()
            assert echo.number == 1
        finally:
            logger.removeHandler(echo)
            log.unsaid.clear()


class TestAFrozenServer:
    """What waits for it is done by a thread that has handed over."""

    def seconds_until_taken_back(self, wrapper: Any) -> float:
        forget(wrapper.alias)
        begin = time.monotonic()
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0)
        return time.monotonic() - begin

    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("case", ["look for pressure", "keep warm", "trim", "dead threads", "dirty", "reset always"])
    def test_does_not_delay_the_other_pools(self, make_alias, server, monkeypatch, case, number):
        monkeypatch.setattr(Pressure, "probe", lambda pressure, session: session.ask(b"DO 0") is not None)
        monkeypatch.setattr(tasks, "PROBE_INTERVAL", 0.1 if case == "look for pressure" else 60)
        pool: dict[str, Any] = {"pool_size": 8, "timeout": 20}
        pool |= {"keep warm": {"min_idle": 3}, "trim": {"idle_timeout": 1.0}, "reset always": {"reset": "always"}}.get(
            case, {}
        )
        with Relay(server.host, server.port) as relay:
            frozen = [
                make_alias(pool={**pool, "logging_name": str(n)}, PORT=relay.port, options={"connect_timeout": 5})
                for n in range(number)
            ]
            healthy = make_alias()
            look(healthy.alias)
            with monkeypatch.context() as patch:
                patch.setattr(PoolMaintenance, "run", lambda chores: None)  # not yet
                for wrapper in frozen:
                    for _ in range(4 if case in ("dead threads", "dirty", "reset always") else 0):
                        (self.forget_dirty if case == "dirty" else forget)(wrapper.alias)
                    if case in ("look for pressure", "keep warm", "trim"):
                        hold_at_once(wrapper.alias, 1 if case == "keep warm" else 4)
                relay.stall(new=True)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert self.seconds_until_taken_back(healthy) < 2
            relay.resume()
            close_pool()

    def forget_dirty(self, alias: str) -> None:
        def work() -> None:
            own = connections[alias]
            own.set_autocommit(False)
            with own.cursor() as cursor:
                cursor.execute("SET @left = 1")
            threads_own.append(own)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def test_has_one_thread_at_most_that_waits_for_it(self, make_alias, server, monkeypatch):
        monkeypatch.setattr(tasks, "PROBE_INTERVAL", 0.1)
        waiting, rounds, probe = [], [], Pressure.probe

        def look_noted(pressure: Pressure, session: Any) -> bool:
            if pressure is pool.pressure:
                waiting.append(threading.current_thread())
            return probe(pressure, session)

        with Relay(server.host, server.port) as relay:
            frozen = make_alias(pool={"pool_size": 4, "min_idle": 4, "timeout": 0.6}, PORT=relay.port)
            hold_at_once(frozen.alias, 4)
            pool = frozen.pool
            relay.stall(new=True)
            monkeypatch.setattr(Pressure, "probe", look_noted)
            eventually(lambda: waiting, bool)
            monkeypatch.setattr(maintenance, "after_round", [*maintenance.after_round, lambda: rounds.append(None)])
            eventually(lambda: len(rounds), lambda number: number >= 4)
            assert len(waiting) == 1
            assert waiting[0].is_alive()
            relay.resume()
            waiting[0].join(30)  # it ends when it is done, for another one has gone on
            assert not waiting[0].is_alive()
            close_pool()
