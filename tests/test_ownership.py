"""Whose a connection is: nobody takes it from whoever uses it, and what has been dropped goes back as it should."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from importlib import import_module
from typing import Any

import MySQLdb
import pytest
from django.db import DatabaseError, close_old_connections, connections, transaction

from django_mysqlpool import auto_close_db
from django_mysqlpool.mysqlpool.backend import fast_path
from django_mysqlpool.mysqlpool.backend import wrapper as wrapper_module
from django_mysqlpool.mysqlpool.backend.cursor import watched
from django_mysqlpool.mysqlpool.backend.scope import Scope
from django_mysqlpool.mysqlpool.pool import lost_slots, reclaim
from django_mysqlpool.mysqlpool.pool.pool import Pool
from tests import DRIVER
from tests.helpers import RELEASE, ask, eventually, holds, status_of
from tests.relay import Relay
from tests.shop.models import Account

pytestmark = [pytest.mark.python, pytest.mark.driver, pytest.mark.mode]

both_modes = pytest.mark.parametrize("release", ["request", "transaction"])


def names() -> list[str]:
    return sorted(Account.objects.values_list("name", flat=True))


def insert(wrapper: Any, name: str) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO shop_account (name, balance) VALUES (%s, 1)", [name])


class TestConversations:
    """Each kind of conversation that the package begins with the server, stalled while the scope ends elsewhere."""

    @pytest.fixture
    def relay(self, server) -> Iterator[Relay]:
        with Relay(server.host, server.port) as relay:
            yield relay

    @staticmethod
    def says(text: bytes) -> Callable[[bytes], bool]:
        return lambda data: text in data.lower()

    @staticmethod
    def is_reset(data: bytes) -> bool:
        return data[4] == (0x11 if DRIVER == "mysqlclient" else 0x1F)  # COM_CHANGE_USER, COM_RESET_CONNECTION

    def ping(self, wrapper: Any) -> None:
        lease = wrapper.lease
        if lease is not None:
            lease.session.needs_ping = True
        else:
            wrapper.pool.source.queue.store.idle[0][0].dbapi_connection.mysqlpool_session.needs_ping = True
        with transaction.atomic(using=wrapper.alias):
            assert ask(wrapper, "SELECT 11") == 11

    def reset(self, wrapper: Any) -> None:
        ask(wrapper, "SELECT @mine := 1")
        wrapper.close()
        assert ask(wrapper, "SELECT 11") == 11

    def rollback(self, wrapper: Any) -> None:
        wrapper.set_autocommit(False)
        insert(wrapper, "rolled back")
        wrapper.close()
        assert ask(wrapper, "SELECT 11") == 11

    def set_up(self, wrapper: Any) -> None:
        wrapper.close()
        wrapper.close_pool()
        assert ask(wrapper, "SELECT 11") == 11

    def facts(self, wrapper: Any) -> None:
        wrapper.pool.server.data = None
        wrapper.__dict__.pop("mysql_server_data", None)
        assert wrapper.mysql_server_data["version"]
        assert ask(wrapper, "SELECT 11") == 11

    def begin(self, wrapper: Any) -> None:
        with transaction.atomic(using=wrapper.alias):
            assert ask(wrapper, "SELECT 11") == 11

    def commit(self, wrapper: Any) -> None:
        with transaction.atomic(using=wrapper.alias):
            assert ask(wrapper, "SELECT 11") == 11

    @both_modes
    @pytest.mark.parametrize(
        ("kind", "packet"),
        [
            ("ping", b"do 0"),
            ("reset", None),
            ("rollback", b"rollback"),
            ("set_up", b"isolation level"),
            ("facts", b"session variables where"),
            ("begin", b"autocommit"),
            ("commit", b"commit"),
        ],
    )
    def test_the_next_one_gets_its_own_answers(self, kind, packet, release, relay, make_alias, monkeypatch):
        monkeypatch.setattr(wrapper_module, "RECHECK_AFTER", 0.0)
        pool = {"pool_size": 1, "max_overflow": 0, "timeout": 30, "release": release, "ping_after": 1000}
        wrapper = make_alias(pool=pool, PORT=relay.port)
        alias = wrapper.alias
        wrapper.close()
        is_ready, go = threading.Event(), threading.Event()

        def helper() -> None:
            own = connections[alias]
            assert ask(own, "SELECT 1") == 1
            is_ready.set()
            go.wait(30)
            getattr(self, kind)(own)

        def borrow() -> Any:
            with auto_close_db():
                return [ask(connections[alias], f"SELECT {number}") for number in (42, 43)]

        with ThreadPoolExecutor(2) as executor:
            with Scope() as scope:
                helping: Future[None] = executor.submit(copy_context().run, helper)
                assert is_ready.wait(30)
                has_stalled = relay.stall_at(self.is_reset if packet is None else self.says(packet))
                go.set()
                assert has_stalled.wait(30), "the package did not send it"
                scope.end()
            borrowing = executor.submit(borrow)
            # It waits for the only connection, or has got another one in the place of that.
            eventually(lambda: status_of(wrapper)["waiting"] or borrowing.done(), bool)
            relay.resume()
            helping.result(30)
            assert borrowing.result(30) == [42, 43]
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0)


class TestSharedByThreads:
    """Django's ``inc_thread_sharing()``: a connection is of whoever uses it now, not of whoever took it."""

    @pytest.fixture
    def shared(self, make_alias, request) -> Iterator[Any]:
        release = getattr(request, "param", RELEASE)
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 10, "release": release})
        wrapper.inc_thread_sharing()
        yield wrapper
        wrapper.dec_thread_sharing()

    @staticmethod
    def in_thread(shared: Any, action: Callable[[], Any]) -> Any:
        """Do it in a thread that has the shared wrapper as its own, and ends."""

        def visit() -> Any:
            connections[shared.alias] = shared
            return action()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(visit).result()

    def test_another_thread_may_use_it_while_it_is_shared(self, shared):
        """As on the stock engine, which asks under a lock; its own thread may use it whatever that says."""
        assert self.in_thread(shared, lambda: ask(shared, "SELECT 1")) == 1
        shared.dec_thread_sharing()
        with pytest.raises(DatabaseError, match=f"The object with alias '{shared.alias}' was created in thread id"):
            self.in_thread(shared, lambda: ask(shared, "SELECT 1"))
        assert ask(shared, "SELECT 1") == 1
        shared.inc_thread_sharing()
        assert self.in_thread(shared, lambda: ask(shared, "SELECT 2")) == 2
        shared.close()

    @staticmethod
    def reclaim(wrapper: Any) -> None:
        """Look as the maintenance thread does, in a thread of its own."""
        with ThreadPoolExecutor(1) as executor:
            executor.submit(wrapper.pool.reclaim).result()

    @pytest.mark.parametrize("shared", ["request", "transaction"], indirect=True)
    def test_the_thread_that_took_it_has_ended(self, shared):
        assert self.in_thread(shared, lambda: ask(shared, "SELECT 1")) == 1
        with transaction.atomic(using=shared.alias):
            insert(shared, "first")
            self.reclaim(shared)
            insert(shared, "second")
        assert names() == ["first", "second"]

    @pytest.mark.parametrize("shared", ["request", "transaction"], indirect=True)
    @pytest.mark.parametrize("commits", [True, False])
    def test_the_thread_that_began_the_block_has_ended(self, shared, commits):
        with transaction.atomic(using=shared.alias):
            self.in_thread(shared, lambda: insert(shared, "first"))
            self.reclaim(shared)
            insert(shared, "second")
            self.in_thread(shared, lambda: insert(shared, "third"))
            self.reclaim(shared)
            transaction.set_rollback(not commits, using=shared.alias)
        assert names() == (["first", "second", "third"] if commits else [])

    def test_the_work_that_a_visitor_did_ends(self, shared):
        """A request, or an ``auto_close_db``, in a thread that visits another one's block."""

        def visit() -> None:
            with Scope() as scope:
                insert(shared, "second")
                scope.end()

        with transaction.atomic(using=shared.alias):
            insert(shared, "first")
            self.in_thread(shared, visit)
            self.in_thread(shared, auto_close_db(lambda: insert(shared, "third")))
            insert(shared, "fourth")
        assert names() == ["first", "fourth", "second", "third"]

    def test_the_scope_of_the_thread_that_took_it_ends_while_another_is_in_a_block(self, shared):
        is_in_block, has_ended = threading.Event(), threading.Event()

        def other() -> None:
            connections[shared.alias] = shared
            with transaction.atomic(using=shared.alias):
                insert(shared, "first")
                is_in_block.set()
                assert has_ended.wait(30)
                insert(shared, "second")

        with ThreadPoolExecutor(1) as executor:
            with Scope() as scope:
                ask(shared, "SELECT 1")
                future = executor.submit(other)
                assert is_in_block.wait(30)
                scope.end()
            has_ended.set()
            future.result(30)
        assert names() == ["first", "second"]
        shared.close()

    def test_what_nobody_uses_any_more_comes_back(self, shared):
        self.in_thread(shared, lambda: ask(shared, "SELECT 1"))
        self.reclaim(shared)
        assert status_of(shared)["out"] == 0

    @pytest.mark.parametrize("is_late", [False, True], ids=["finds a lease", "found none"])
    @pytest.mark.parametrize("end", ["close", "check_in"])
    @pytest.mark.parametrize("shared", ["request", "transaction"], indirect=True)
    def test_another_thread_connects_too(self, shared, end, is_late, monkeypatch):
        """While the first has a lease, and not yet its connection. The other one has looked before that, or looks now."""
        insert(shared, "before")
        getattr(shared, end)()
        (session,) = shared.pool.sessions
        looked, may_go_on, tops = threading.Event(), threading.Event(), []
        get_running_loop, get_autocommit = fast_path.get_running_loop, session.observed.get_autocommit

        def visit() -> None:
            connections[shared.alias] = shared
            shared.ensure_connection()  # as atomic() does, without the wrapper's lock
            insert(shared, "other")

        def look() -> object:
            if threading.current_thread() is other and not looked.is_set():
                looked.set()
                assert may_go_on.wait(30)
            return get_running_loop()

        def is_blocked() -> bool:
            tops.append(sys._current_frames()[other.ident].f_code.co_name)
            # (On Python 3.14 the lock's method for a with block is in Python.) And not only on its way through it:
            return tops[-20:] in ([name] * 20 for name in ("resume", "ensure_connection", "__enter__"))

        def get_autocommit_late() -> bool:
            if not may_go_on.is_set():
                may_go_on.set()
                if not is_late:
                    other.start()
                eventually(is_blocked, bool)
            return get_autocommit()

        other = threading.Thread(target=visit)
        if is_late:
            monkeypatch.setattr(fast_path, "get_running_loop", look)
            other.start()
            assert looked.wait(30)
        session.observed.get_autocommit = get_autocommit_late
        with shared.cursor() as cursor:
            cursor.execute("INSERT INTO shop_account (name, balance) VALUES ('first', 1)")
        other.join(30)
        assert not other.is_alive()
        assert names() == ["before", "first", "other"]
        assert shared.pool.status()["open"] == 1
        shared.close()
        assert shared.pool.status()["out"] == 0

    def test_only_shared_ones_are_spared(self, make_alias):
        """What a thread that has ended left open in a wrapper of its own is rolled back, though the wrapper stays."""
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10})
        kept = []

        def leave() -> None:
            own = connections[wrapper.alias]
            kept.append(own)
            own.set_autocommit(False)
            insert(own, "lost")

        with ThreadPoolExecutor(1) as executor:
            executor.submit(leave).result()
        self.reclaim(wrapper)
        assert status_of(wrapper)["out"] == 0
        assert names() == []


class TestConnectionSetToNone:
    """``connection.connection = None``, by which some applications and tests forget a connection."""

    @both_modes
    def test_what_it_left_goes_with_it(self, release, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10, "release": release})
        wrapper.set_autocommit(False)
        ask(wrapper, "SELECT @mine := 1")
        ask(wrapper, "SELECT GET_LOCK('mine', 1)")
        insert(wrapper, "lost")
        wrapper.connection = None
        assert ask(wrapper, "SELECT @mine IS NULL AND IS_FREE_LOCK('mine')") == 1
        assert names() == []
        assert wrapper.get_autocommit()
        assert status_of(wrapper)["open"] <= 1
        wrapper.close()

    @both_modes
    def test_connecting_again_too(self, release, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10, "release": release})
        wrapper.connect()
        ask(wrapper, "SELECT @mine := 1")
        wrapper.connect()
        assert ask(wrapper, "SELECT @mine") is None
        wrapper.close()

    def test_closing_gives_it_back(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10})
        wrapper.set_autocommit(False)
        insert(wrapper, "lost")
        wrapper.connection = None
        wrapper.close()
        assert status_of(wrapper)["out"] == 0
        assert names() == []

    def test_so_does_the_end_of_its_scope(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10})
        with auto_close_db():
            wrapper.set_autocommit(False)
            insert(wrapper, "lost")
            wrapper.connection = None
        assert status_of(wrapper)["out"] == 0
        assert names() == []


class TestTheEndOfAScope:
    def test_a_connection_that_is_taken_meanwhile_is_wanted_back(self, make_alias):
        """Whether the end comes before the connection is counted in, or after, or in between: one sees the other."""
        wrapper = make_alias()

        class AtTheSameTime(set):
            """Leases of a scope that ends in the moment in which one is counted in."""

            def add(self, lease: Any) -> None:
                threads.submit(scope.end).result(30)
                super().add(lease)

        with ThreadPoolExecutor(1) as threads, Scope() as scope:
            scope.leases = AtTheSameTime()
            assert ask(wrapper, "SELECT 1") == 1
            assert status_of(wrapper)["out"] == 0

    def test_so_it_is_where_a_scope_around_it_ends(self, make_alias):
        wrapper = make_alias()
        with Scope() as outer, Scope():
            with ThreadPoolExecutor(1) as threads:
                threads.submit(outer.end).result(30)
            assert ask(wrapper, "SELECT 1") == 1
            assert status_of(wrapper)["out"] == 0

    def test_a_scope_in_one_that_has_ended_is_for_itself(self, make_alias):
        wrapper = make_alias()
        with Scope() as outer:
            outer.end()
            with Scope() as inner:
                assert inner.parent is None
                with transaction.atomic(using=wrapper.alias):
                    ask(wrapper, "SELECT 1")
                inner.end()
        assert status_of(wrapper)["out"] == 0

    def test_an_owner_that_is_gone_ends_it(self, make_alias):
        """An interrupt at the door of ``__exit__()`` keeps ``with auto_close_db():`` from its end."""
        wrapper = make_alias()
        block = auto_close_db()
        block.__enter__()
        ask(wrapper, "SELECT 1")
        before = status_of(wrapper)["out"]
        del block
        with ThreadPoolExecutor(1) as threads:
            threads.submit(wrapper.pool.reclaim).result(30)
        assert (before, status_of(wrapper)["out"]) == (0 if RELEASE == "transaction" else 1, 0)
        # What this thread does next is no part of that work.
        ask(wrapper, "SELECT @mine := 1")
        assert ask(wrapper, "SELECT 1") == 1
        assert status_of(wrapper)["out"] == 1  # in either mode: the variable keeps it
        wrapper.close()

    @pytest.mark.parametrize("end", ["end", "release_idle"])
    def test_its_holder_waits_for_whoever_has_the_lock(self, end, make_alias):
        """That one is returning the connection, or looks at it, and is done soon; to pass by would leave it out."""
        wrapper = make_alias()
        has_it, may_go_on = threading.Event(), threading.Event()
        holder = threading.get_ident()

        def look() -> None:
            with wrapper.use:
                has_it.set()
                assert may_go_on.wait(30)

        def let_go_on() -> None:
            eventually(lambda: sys._current_frames()[holder].f_code.co_name, {"check_in_if_idle", "__enter__"}.__contains__)
            may_go_on.set()

        with ThreadPoolExecutor(2) as threads, Scope() as scope:
            wrapper.ensure_connection()
            assert scope.leases
            looking = threads.submit(look)
            assert has_it.wait(30)
            letting = threads.submit(let_go_on)
            getattr(scope, end)()
            assert status_of(wrapper)["out"] == 0
            looking.result(30)
            letting.result(30)


class TestAClosedCursor:
    @staticmethod
    def cursor_class(wrapper: Any, name: str) -> type:
        """The driver's."""
        return getattr(import_module(f"{wrapper.Database.__name__}.cursors"), name)

    def watched(self, wrapper: Any, name: str) -> type:
        return watched(self.cursor_class(wrapper, name), *wrapper.driver.cursor_mixins)

    @pytest.mark.parametrize("name", ["Cursor", "DictCursor", "SSCursor"])
    @pytest.mark.parametrize("reads", [0, 1, 5])
    @pytest.mark.parametrize("release", ["request", "transaction"])
    def test_it_is_as_the_drivers(self, name, reads, release, make_alias):
        """In all that can be asked of it: what it still tells, and how it refuses."""
        if name == "SSCursor" and (DRIVER != "mysqlclient" or MySQLdb.version_info < (2, 3)):
            pytest.skip("this driver answers None where nothing can be read any more; we say that the cursor is closed")
        wrapper = make_alias(pool={"release": release})
        own = wrapper.Database.connect(**{**wrapper.get_connection_params(), "cursorclass": wrapper.driver.cursor_class})
        asked = ("description", "rowcount", "rownumber", "lastrowid", "connection", "arraysize", "warning_count")

        def told(connection: Any, cursor_class: type) -> list[Any]:
            cursor = connection.cursor(cursor_class)
            cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
            for _ in range(reads):
                cursor.fetchone()
            cursor.close()
            answers = [getattr(cursor, what, "none") for what in asked]
            for method in (cursor.fetchone, cursor.fetchall, lambda: cursor.execute("SELECT 1"), cursor.close):
                try:
                    answers.append(method())
                except Exception as error:  # noqa: PERF203 (that is an answer)
                    answers.append(repr(error))
            return answers

        with closing(own):
            wrapper.ensure_connection()
            ours = told(wrapper.connection, self.watched(wrapper, name))
            assert ours == told(own, self.cursor_class(wrapper, name))
        wrapper.close()
        assert status_of(wrapper)["out"] == 0

    def test_what_has_been_read_is_closed_whoever_has_the_lock(self, make_alias):
        wrapper = make_alias()
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        with ThreadPoolExecutor(1) as threads, wrapper.use:
            threads.submit(cursor.close).result(30)
        assert cursor.connection is None
        wrapper.close()

    def test_what_is_still_with_the_server_is_read_under_the_lock(self, make_alias):
        wrapper = make_alias()
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor(self.watched(wrapper, "SSCursor"))
        cursor.execute("SELECT 1 UNION SELECT 2")
        with ThreadPoolExecutor(1) as threads:
            with wrapper.use:
                closed = threads.submit(cursor.close)
                eventually(lambda: tops(threads), lambda names: "_close" in names or "__enter__" in names)
                assert not closed.done()
            closed.result(30)
        wrapper.close()
        assert status_of(wrapper)["out"] == 0


def tops(executor: ThreadPoolExecutor) -> set[str]:
    """The functions in which the threads of an executor stand."""
    frames = sys._current_frames()
    return {frames[thread.ident].f_code.co_name for thread in executor._threads if thread.ident in frames}


class TestTidying:
    """``close_old_connections()``, which Celery calls after each task: nothing is connected for it, and nothing raised."""

    @holds
    @pytest.mark.parametrize("is_known", [True, False], ids=["an error has told", "nobody knows yet"])
    def test_of_a_connection_that_has_died(self, is_known, make_alias, server, monkeypatch):
        monkeypatch.setattr(wrapper_module, "RECHECK_AFTER", 0.0)
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 2}, PORT=relay.port)
            other = make_alias()
            ask(wrapper, "SELECT 1")
            ask(other, "SELECT 1")
            relay.redirect("127.0.0.1", 1)  # nobody is there
            if is_known:
                wrapper.lease.is_broken = True
            before = relay.connects
            close_old_connections()
            assert relay.connects == before
            # CONN_MAX_AGE is 0: Django closes all of them.
            assert [status_of(one)["out"] for one in (wrapper, other)] == [0, 0]

    @holds
    def test_of_a_transaction_left_open(self, make_alias):
        wrapper = make_alias()
        wrapper.set_autocommit(False)
        insert(wrapper, "lost")
        wrapper.close_if_unusable_or_obsolete()
        assert status_of(wrapper)["out"] == 0
        assert names() == []

    @holds
    def test_get_autocommit_asks_nothing(self, make_alias, server):
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"ping_after": 0}, PORT=relay.port)
            ask(wrapper, "SELECT 1")
            assert relay.count(wrapper.get_autocommit) == 0


class TestAThreadThatStandsStill:
    """On a busy machine a thread may not run for seconds, between any two steps: what it has in hand is not lost."""

    @pytest.fixture
    def stand_still(self, monkeypatch) -> Callable[..., Any]:
        """Runs ``work`` in a thread that stops in the owner's ``method``, and reclaims meanwhile."""
        monkeypatch.setattr(lost_slots, "LOST_AFTER", 0)
        monkeypatch.setattr(reclaim, "LOST_AFTER", 0)

        def run(pool: Pool, owner: Any, method: str, work: Callable[[], Any]) -> Any:
            stands, may_go_on = threading.Event(), threading.Event()
            real = getattr(owner, method)

            def stopped(*args: Any, **kwargs: Any) -> Any:
                if not stands.is_set():
                    stands.set()
                    assert may_go_on.wait(60)
                return real(*args, **kwargs)

            with ThreadPoolExecutor(1) as executor, monkeypatch.context() as patch:
                patch.setattr(owner, method, stopped)
                future = executor.submit(work)
                future.add_done_callback(lambda _: stands.set())  # it may fail before it comes to that, and says so below
                assert stands.wait(60)
                for _ in range(3):
                    pool.reclaim()
                may_go_on.set()
                return future.result(30)

        return run

    @pytest.mark.parametrize("place", ["opened", "acquired", "leased", "checked in"])
    def test_it_goes_on_with_the_same_connection(self, place, make_alias, stand_still):
        alias = make_alias(pool={"pool_size": 1, "max_overflow": 0}, at_most=1).alias
        pool = connections[alias].pool
        owner, method = {
            "opened": (pool.connector, "_on_open"),
            "acquired": (pool, "_lease"),
            "leased": (pool, "_lease"),
            "checked in": (pool.source, "release"),
        }[place]

        @auto_close_db
        def work() -> Any:
            return ask(connections[alias], "SELECT CONNECTION_ID()")

        before = None if place in ("opened", "acquired") else work()
        pid = stand_still(pool, owner, method, work)
        assert before in (None, pid)
        assert work() == pid
        assert pool.status()["open"] == 1
        assert pool.status()["out"] == 0
