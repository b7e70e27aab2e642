"""An exception that a signal's handler, or gevent, raises anywhere loses no slot, leaves nothing, and reaches the caller.

Each function of the package is interrupted at its entry, one after the other, by an exception that is an ``Exception``, as
Celery's soft time limit is, or not, as ``KeyboardInterrupt`` and gevent's ``Timeout`` are not.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse

import django_mysqlpool
from django_mysqlpool import auto_close_db
from django_mysqlpool.middleware import ConnectionReleaseMiddleware, ConnectionReleaseWSGI
from django_mysqlpool.mysqlpool.pool import connector
from django_mysqlpool.mysqlpool.pool import pool as pool_module
from django_mysqlpool.mysqlpool.pool.locks import WITH_HAS_A_GAP, GuardedRLock
from tests.helpers import DATABASE, RELEASE, eventually, status_of

# Python tells nobody of what is raised in a finalizer: Django's own fail for what an interrupt has left half made.
pytestmark = [pytest.mark.python, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

PACKAGE = str(Path(django_mysqlpool.__file__).parent) + os.sep
STANDARD_LIBRARY = Path(threading.__file__).parent.name
CAP = 2


class SoftLimit(Exception):
    """Of the kind of Celery's ``SoftTimeLimitExceeded``."""


class Interrupt(BaseException):
    """Of the kind of ``KeyboardInterrupt``."""


def is_resumed_without_handlers(frame: FrameType) -> bool:
    """A generator goes on, on Python 3.10, where a trace function's exception ends it without its ``finally`` blocks.

    (An exception of a signal's handler runs them on every Python.)
    """
    return sys.version_info < (3, 11) and frame.f_lasti >= 0


class Interrupter:
    """Raises at the entry of the ``number``-th function of the package that this thread calls."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.left = number
        self.error = error
        #: Where it was.
        self.place: str | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        # (Python tells nobody of what is raised while it drops a generator.)
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name != "<genexpr>":
            if is_resumed_without_handlers(frame):
                return
            self.left -= 1
            if self.left < 0 and self.place is None:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
                raise self.error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before = sys.gettrace()  # of a debugger, or of coverage
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def work(alias: str) -> None:
    """Leave a variable, an open transaction that fails, and a row."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SET @left = 1")
        cursor.execute("SELECT 2")


def leave_a_deferred_transaction(alias: str) -> None:
    connections[alias].set_autocommit(False)


def leave_it_to_a_checkin(alias: str) -> None:
    try:
        leave_a_deferred_transaction(alias)
    finally:
        connections[alias].check_in()


def in_block(alias: str) -> None:
    with auto_close_db():
        work(alias)


def decorated(alias: str) -> None:
    auto_close_db(work)(alias)


def in_request(alias: str) -> None:
    ConnectionReleaseMiddleware(lambda request: work(alias) or HttpResponse())(HttpRequest())


def in_wsgi_request(alias: str) -> None:
    ConnectionReleaseWSGI(lambda environ, start_response: work(alias) or [b""])({}, lambda *_: None)


def by_django(alias: str) -> None:
    try:
        work(alias)
    finally:
        connections[alias].close()


# As error trackers and test runners do, the tests keep the interrupts, and so the frames that these came through, with all
# that is in them; but for ``in_block()``: an interrupt before the first step of ``__exit__()`` leaves the block open until
# its exception is gone.

#: Each release mode has each kind of interrupt. (Each of the twenty combinations takes ten seconds.)
UNITS = [
    (in_block, "request", Interrupt),
    (in_block, "transaction", SoftLimit),
    (decorated, "request", SoftLimit),
    (in_request, "transaction", Interrupt),
    (in_wsgi_request, "request", Interrupt),
    (by_django, "transaction", SoftLimit),
]


def assert_whole(alias: str) -> None:
    """Threads hold as many connections as the cap allows, at once, and each is as a new one."""
    everybody = threading.Barrier(CAP, timeout=30)

    @auto_close_db
    def borrow() -> Any:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT @left, @@autocommit, DATABASE()")
            row = cursor.fetchone()
            with transaction.atomic(using=alias):
                cursor.execute("SELECT 3")
                everybody.wait()
            return row, cursor.fetchone()

    with ThreadPoolExecutor(CAP) as executor:
        for future in [executor.submit(borrow) for _ in range(CAP)]:
            assert future.result() == ((None, 1, DATABASE), (3,))


def assert_outside_of_work(alias: str) -> None:
    """This thread does no work that has ended, which would want its connection back after each statement."""
    wrapper: Any = connections[alias]
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()
    if wrapper.release is None:
        assert wrapper.lease is not None
        assert not wrapper.lease.return_requested
    wrapper.close()


@pytest.mark.skipif(RELEASE == "transaction", reason="has both modes in one run")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("unit", "release", "error"), UNITS, ids=lambda value: getattr(value, "__name__", value))
def test_at_the_entry_of_every_function(unit, release, error, make_alias):  # noqa: C901
    wrapper = make_alias(pool={"pool_size": CAP, "max_overflow": 0, "timeout": 10, "release": release}, at_most=CAP)
    alias = wrapper.alias
    swallowed, broken = [], {}
    kept = []
    for number in itertools.count():
        if number % 3 == 0:
            wrapper.close_pool()  # so that connections are opened, too
        interrupter = Interrupter(number, error)
        try:
            with interrupter.at_work():
                unit(alias)
            if interrupter.place is not None:
                swallowed.append(interrupter.place)
        except error as caught:
            if unit is not in_block:
                kept.append(caught)
        except Exception as problem:  # what the last interrupt has left
            broken[f"after {number}, at {interrupter.place}"] = repr(problem)
        if unit is by_django:
            connections[alias].close()  # as anybody would do whose own close() was interrupted
        try:
            assert_whole(alias)
            if unit in {in_block, decorated}:
                assert_outside_of_work(alias)
        except Exception as problem:
            broken[f"{number}, at {interrupter.place}"] = repr(problem)
            connections[alias].close()
        if interrupter.place is None:
            break
    assert not swallowed
    assert not broken
    assert number > 80


@pytest.mark.skipif(RELEASE == "transaction", reason="is about that mode in any case")
@pytest.mark.parametrize("unit", [auto_close_db(leave_a_deferred_transaction), leave_it_to_a_checkin])
def test_a_deferred_transaction_swallows_no_later_write(unit, make_alias, observer):
    wrapper = make_alias(pool={"pool_size": CAP, "max_overflow": 0, "timeout": 10, "release": "transaction"})
    alias = wrapper.alias
    observer.query(f"DROP TABLE IF EXISTS {DATABASE}.swallowed")
    observer.query(f"CREATE TABLE {DATABASE}.swallowed (a INT)")
    for number in itertools.count():
        interrupter = Interrupter(number, Interrupt)
        try:
            with interrupter.at_work():
                unit(alias)
        except Interrupt:
            pass
        if interrupter.place is None:
            break
        # Where an interrupt has left the transaction open, Django knows that, and a write in it is a part of it.
        is_committed = connections[alias].get_autocommit()
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO swallowed VALUES (%s)", [number])
        connections[alias].check_in()
        rows = observer.query(f"SELECT COUNT(*) FROM {DATABASE}.swallowed WHERE a = {number}")
        assert rows == [(is_committed,)], interrupter.place
    assert number > 5
    observer.query(f"DROP TABLE {DATABASE}.swallowed")


@pytest.mark.skipif(not WITH_HAS_A_GAP, reason="Python 3.14 may leave out a with block after its lock has been acquired")
def test_the_locks_of_others_that_a_checkout_and_a_checkin_take_are_safe(make_alias):
    """SQLAlchemy's of the first connect, and Django's of each ``close()``."""
    wrapper = make_alias()
    wrapper.ensure_connection()
    for listeners in (wrapper.pool.source.dispatch.first_connect, wrapper.pool.source.dispatch.connect):
        assert type(listeners._exec_once_mutex) is GuardedRLock
    assert type(wrapper._thread_sharing_lock) is GuardedRLock
    wrapper.inc_thread_sharing()
    assert wrapper.allow_thread_sharing
    wrapper.dec_thread_sharing()
    assert not wrapper.allow_thread_sharing


@pytest.mark.parametrize("unit", [in_block, decorated])
def test_a_signal_during_thousands_of_units_of_work(unit, make_alias):
    """Anywhere, between any two steps of any function."""
    wrapper = make_alias(pool={"pool_size": CAP, "max_overflow": 0, "timeout": 10}, at_most=CAP)
    interrupted, kept = 0, []

    def interrupt(_: object, frame: FrameType | None) -> None:
        # The standard library's own locks are not safe from it: logging would stay locked for everybody.
        if frame is not None and Path(frame.f_code.co_filename).parent.name in {"logging", STANDARD_LIBRARY}:
            signal.setitimer(signal.ITIMER_REAL, 0.000_05)
        else:
            raise SoftLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(1, 2_001):
            try:
                # From the first step of the work to beyond its end.
                signal.setitimer(signal.ITIMER_REAL, number / 2_000 * 0.003)
                unit(wrapper.alias)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except SoftLimit as error:  # noqa: PERF203
                interrupted += 1
                if unit is not in_block:
                    kept.append(error)
                connections[wrapper.alias].close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100
    assert_whole(wrapper.alias)
    assert_outside_of_work(wrapper.alias)
    kept.clear()
    gc.collect()  # here, and not in a later test, where what finalizers raise would be a failure


def test_one_at_a_checkin_keeps_its_thread_from_no_connection(make_alias, monkeypatch):
    """The lease has not ended, and it has the only slot."""
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 5})

    def interrupt(*_: object) -> int:
        raise Interrupt

    wrapper.ensure_connection()
    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "bisect_left", interrupt)
        with pytest.raises(Interrupt):
            wrapper.close()
    wrapper.connection = None  # Django has not come to that
    work(wrapper.alias)
    wrapper.close()
    assert status_of(wrapper)["open"] == status_of(wrapper)["idle"] == 1


def test_one_just_after_a_connect_leaves_no_connection(make_alias, observer, monkeypatch):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
    has_opened = False

    def note(*_: object) -> None:
        nonlocal has_opened
        has_opened = True

    def monotonic() -> float:
        if has_opened:
            raise Interrupt
        return time.monotonic()

    open_connection = wrapper.open_connection
    monkeypatch.setattr(wrapper, "open_connection", lambda params: (open_connection(params), note())[0])
    with monkeypatch.context() as patch:
        patch.setattr(connector, "time", SimpleNamespace(monotonic=monotonic))
        with pytest.raises(Interrupt) as kept:
            wrapper.ensure_connection()
    assert kept  # with all its frames
    user = wrapper.settings_dict["USER"]
    eventually(lambda: observer.connections_of(user), lambda pids: not pids)


class InterrupterOfThreading:
    """Raises at the ``number``-th line of the module ``threading`` that this thread comes to."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.has_raised = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != threading.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0 and not self.has_raised:
                self.has_raised = True
                raise Interrupt
        return self


@pytest.mark.skipif(RELEASE == "transaction", reason="has both modes in one run")
@pytest.mark.parametrize("release", ["request", "transaction"])
def test_a_thread_is_not_taken_for_ended(release, make_alias):
    """Up to Python 3.12 an interrupt of ``is_alive()``, or of ``join()``, marks a running thread as ended."""
    wrapper = make_alias(pool={"pool_size": CAP, "max_overflow": 0, "release": release})
    pool = wrapper.pool
    in_transaction, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[Any] = []

    @auto_close_db
    def hold() -> None:
        with transaction.atomic(using=wrapper.alias), connections[wrapper.alias].cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            seen.extend(cursor.fetchone())
            in_transaction.set()
            assert may_end.wait(60)
            cursor.execute("SELECT CONNECTION_ID()")
            seen.extend(cursor.fetchone())
        has_ended.set()

    thread = threading.Thread(target=hold)
    thread.start()
    assert in_transaction.wait(30)
    before = sys.gettrace()
    for look in (thread.is_alive, lambda: thread.join(0), pool.reclaim):
        for number in itertools.count():
            interrupter = InterrupterOfThreading(number)
            try:
                sys.settrace(interrupter)
                look()
            except Interrupt:
                pass
            finally:
                sys.settrace(before)
            pool.reclaim()
            if not interrupter.has_raised:
                break
    assert status_of(wrapper)["out"] == 1
    may_end.set()
    assert has_ended.wait(30)
    assert seen[0] == seen[1]


@pytest.mark.skipif(RELEASE == "transaction", reason="makes no difference to it")
def test_a_stranded_connection_makes_way_for_the_checkout_that_has_its_slot(make_alias):
    """An interrupt has parted it from its slot, and the server counts it until somebody closes it."""
    wrapper = make_alias(pool={"pool_size": CAP, "max_overflow": 0, "timeout": 10}, at_most=CAP)
    pool, params = wrapper.pool, wrapper.get_connection_params()
    leases = [pool.checkout(wrapper, params)]
    wrapper.reference.lease = None  # so that the second one does not take the first for lost
    leases.append(pool.checkout(wrapper, params))
    for lease in leases:
        lease.session.lease = wrapper.reference.lease = None
        lease.entry.dbapi_connection = None
        pool.source.release(lease.entry)
    assert status_of(wrapper)["open"] == CAP
    assert_whole(wrapper.alias)
