"""What the soak has found, each fault by itself; the soak is ``make soak``."""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from django.db import OperationalError, connections, transaction

from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope, on_behalf_of
from django_mysqlpool.mysqlpool.errors import copy_of
from django_mysqlpool.mysqlpool.pool.waiters import SlotRequest
from tests import DRIVER
from tests.helpers import eventually
from tests.relay import Relay

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]


class TestATransactionWhoseConnectionDies:
    @pytest.fixture(params=["plain", "TLS"])
    def connection(self, request, server, make_alias):
        if request.param == "TLS" and server.is_mariadb:
            pytest.skip("the private MariaDB has no certificate")
        return make_alias(options={"ssl_mode": "REQUIRED"} if request.param == "TLS" else {})

    def test_its_end_leaves_the_thread_out_of_it(self, connection, observer):
        """As where ``atomic()`` has committed, and to switch autocommit on again finds the server gone."""
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            observer.query("KILL %s", cursor.fetchone()[0])
        with pytest.raises(OperationalError):
            connection.set_autocommit(True)

        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
        assert connection.get_autocommit()


class TestWhatADeadThreadHeld:
    def test_two_threads_may_find_it_at_once(self, make_alias):
        """As the maintenance thread and one that waits do, or two that wait."""
        connection = make_alias()
        alias, pool, kept = connection.alias, connection.pool, []

        def begin() -> None:
            connections[alias].set_autocommit(False)
            kept.append(connections[alias])

        class TheOther(logging.Handler):
            """Takes back, in another thread, while the first one is telling of it."""

            def emit(self, record: logging.LogRecord) -> None:
                logger.removeHandler(self)
                run(pool.reclaim)

        def run(target):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

        logger = logging.getLogger("django_mysqlpool")
        logger.addHandler(TheOther())
        run(begin)
        pool.reclaim()
        assert pool.status()["out"] == 0


def in_thread(action):
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


class TestThreadsThatShareAWrapper:
    @pytest.fixture
    def share(self, make_alias):
        """Makes a wrapper that threads share to the end of the test."""
        shared = []

        def make(release):
            wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 10, "release": release})
            wrapper.inc_thread_sharing()
            shared.append(wrapper)
            return wrapper

        yield make
        for wrapper in shared:
            wrapper.dec_thread_sharing()

    def test_none_gives_back_what_another_is_about_to_use(self, share, monkeypatch):
        """``release = "transaction"``: the end of one's statement is not the end of the other's."""
        wrapper = share("transaction")
        sequences = wrapper.release.sequences
        must_reach_previous = sequences.must_reach_previous

        def ask_meanwhile() -> None:
            connections[wrapper.alias] = wrapper
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 2")

        other = threading.Thread(target=ask_meanwhile)

        def interrupted(*args):
            """Another thread's statement comes between the checkout and the statement that it is for, if it can."""
            monkeypatch.undo()
            must_reach_previous(*args)
            other.start()
            other.join(1)

        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            monkeypatch.setattr(sequences, "must_reach_previous", interrupted)
            cursor.execute("SELECT 3")
            assert cursor.fetchone() == (3,)
        other.join(10)
        assert not other.is_alive()
        assert wrapper.pool.status()["out"] == 0

    def test_the_one_that_has_a_cursor_is_its_holder(self, share):
        """Not the one that has ended, of whom it would be taken before the cursor's first statement."""
        wrapper = share("request")

        def ask() -> None:
            connections[wrapper.alias] = wrapper
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")

        in_thread(ask)
        with wrapper.cursor() as cursor:
            in_thread(wrapper.pool.reclaim)
            cursor.execute("SELECT 2")
            assert cursor.fetchone() == (2,)

    @pytest.mark.parametrize("release", ["request", "transaction"])
    def test_what_one_that_has_ended_left_in_the_session_stays(self, share, release):
        """No variable, lock or temporary table is lost without an error, for as long as the wrapper is not closed."""
        wrapper = share(release)

        def leave() -> None:
            connections[wrapper.alias] = wrapper
            with wrapper.cursor() as cursor:
                cursor.execute("SET @left = 1")

        in_thread(leave)
        in_thread(wrapper.pool.reclaim)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @left")
            assert cursor.fetchone() == (1,)
        wrapper.close()
        assert wrapper.pool.status()["out"] == 0


#: OPTIONS for what a relay is to read.
READABLE = {} if DRIVER == "mysqlclient" else {"ssl_disabled": True}


class SoftLimit(Exception):
    """Of the kind of Celery's ``SoftTimeLimitExceeded``: of no driver's, and an ``Exception``."""


class TestAnInterrupt:
    def test_it_reaches_the_caller_of_a_ping(self, server, make_alias):
        with Relay(server.host, server.port) as relay:
            pool = {"pool_size": 1, "max_overflow": 0, "timeout": 10, "ping_after": 0}
            wrapper = make_alias(PORT=relay.port, pool=pool, options=READABLE)

            def ask() -> None:
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT 1")
                wrapper.close()

            def interrupt(*_) -> None:
                raise SoftLimit

            ask()
            has_stalled = relay.stall_at(lambda data: b"DO 0" in data)
            before = signal.signal(signal.SIGALRM, interrupt)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                with pytest.raises(SoftLimit):
                    ask()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            assert has_stalled.is_set()
            wrapper.close()
            ask()
            assert wrapper.pool.status()["out"] == 0

    def test_it_reaches_the_caller_from_the_copy_of_an_error(self):
        class Interrupted(Exception):
            def __reduce_ex__(self, protocol):
                raise SoftLimit

        with pytest.raises(SoftLimit):
            copy_of(Interrupted())


class TestTheLine:
    """An interrupt comes as another thread is about to serve one that waits."""

    @pytest.fixture
    def slots(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 30})
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        wrapper.close()
        yield wrapper.pool.source
        assert wrapper.pool.status()["out"] == 0

    @pytest.fixture
    def ask(self, slots):
        """Waits for the one connection, in a thread of its own; its future."""

        def ask() -> None:
            slots.release(slots.acquire(SlotRequest()))

        with ThreadPoolExecutor(1) as executor:

            def begin() -> Future[None]:
                future = executor.submit(ask)
                eventually(slots.waiting, lambda number: number == 1)
                return future

            yield begin

    def test_it_has_left_the_line_and_was_given_nothing(self, slots, ask):
        mine = slots.acquire(SlotRequest())
        future = ask()
        with slots.lock:
            slots.queue._waiters.popleft()
        slots.release(mine)
        future.result(timeout=20)

    def test_it_was_to_be_told_of_an_error(self, slots, ask):
        class Interrupted(Exception):
            def __reduce_ex__(self, protocol):
                raise SoftLimit

        mine = slots.acquire(SlotRequest())
        future = ask()
        with pytest.raises(SoftLimit):
            slots.attempts.connect_failed(Interrupted(), 0)
        assert slots.waiting() == 1
        slots.release(mine)
        future.result(timeout=20)


class TestABlockThatAnInterruptDrops:
    def test_it_does_not_end_later(self):
        """Not when it is collected, in the middle of something else or in another context."""
        with Scope() as outer:
            block = on_behalf_of(outer)
            block.__enter__()
            with Scope() as inner:
                del block
                assert current_scope() is inner
