"""A fork waits for what is being opened or closed, and what begins meanwhile waits for the fork; neither for ever."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from django_mysqlpool.mysqlpool import log
from django_mysqlpool.mysqlpool.pool import fork as module
from django_mysqlpool.mysqlpool.pool.fork import ForkBarrier
from django_mysqlpool.mysqlpool.pool.registry import Registry

pytestmark = pytest.mark.unit


class TellingCondition(threading.Condition):
    """Tells when a thread is about to wait; whoever gets the lock after that knows that it does wait."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.is_waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.is_waited_for.set()
        return super().wait(timeout)


@pytest.fixture
def barrier() -> ForkBarrier:
    made = ForkBarrier(threading.RLock())
    made._changed = TellingCondition(made._lock)
    return made


@pytest.fixture
def in_thread():
    threads = []

    def start(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def pool_of(barrier: ForkBarrier) -> Any:
    """As much of a pool as the registry needs at a fork."""
    return SimpleNamespace(name=str(id(barrier)), connector=SimpleNamespace(barrier=barrier))


@contextmanager
def operation(barrier: ForkBarrier) -> Iterator[None]:
    """Open or close a connection in the block."""
    this = object()
    try:
        barrier.begin(this)
        yield
    finally:
        barrier.operations.pop(this, None)
        barrier.note_end()


def open_in_thread(barrier: ForkBarrier, in_thread: Any, steps: list[str]) -> threading.Event:
    """Have another thread open a connection until the returned event is set; ``steps`` tells when it has ended."""
    under_way, may_end = threading.Event(), threading.Event()

    def open_one() -> None:
        with operation(barrier):
            under_way.set()
            assert may_end.wait(10)
            steps.append("opened")

    in_thread(open_one)
    assert under_way.wait(10)
    return may_end


def stop(barrier: ForkBarrier) -> int:
    """As far as to the fork; but for the lock, so that others can be seen to wait for the fork, and not for the lock."""
    barrier.raise_for_fork()
    barrier.wait_for_end(time.monotonic() + module.MAX_WAIT)
    number = barrier.hold()
    barrier._lock.release()
    return number


def resume(barrier: ForkBarrier) -> None:
    barrier._lock.acquire()
    barrier.lower_after_fork()


def test_a_fork_waits_for_what_has_begun(barrier, in_thread):
    steps: list[str] = []

    def fork() -> None:
        stop(barrier)
        steps.append("forked")
        assert not barrier.is_busy
        resume(barrier)

    may_end = open_in_thread(barrier, in_thread, steps)
    assert barrier.is_busy
    forking = in_thread(fork)
    assert barrier._changed.is_waited_for.wait(10)
    may_end.set()
    forking.join(10)
    assert steps == ["opened", "forked"]


def test_what_begins_in_a_fork_waits_for_its_end(barrier, in_thread):
    steps: list[str] = []

    def open_one() -> None:
        with operation(barrier):
            steps.append("opened")

    stop(barrier)
    thread = in_thread(open_one)
    assert barrier._changed.is_waited_for.wait(10)
    with barrier._lock:  # so it is waiting by now
        steps.append("forked")
    resume(barrier)
    thread.join(10)
    assert steps == ["forked", "opened"]


def test_the_forking_thread_itself_may_close_one(barrier):
    """As where the garbage collector drops one there."""
    stop(barrier)
    with operation(barrier):
        assert barrier.is_busy
    resume(barrier)
    assert not barrier._changed.is_waited_for.is_set()


def test_a_fork_does_not_wait_for_a_server_that_is_silent(barrier, in_thread, monkeypatch):
    """Another thread opens a connection for longer than a fork waits; the fork is told."""
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)
    may_end = open_in_thread(barrier, in_thread, steps=[])
    assert stop(barrier) == 1
    assert barrier.is_busy
    resume(barrier)
    may_end.set()


def test_a_fork_does_not_wait_for_what_its_own_thread_has_begun(barrier):
    """As where a handler of the log, or of a signal, forks while a connection is opened: it can't end before the fork."""
    with operation(barrier):
        assert stop(barrier) == 0
        assert not barrier._changed.is_waited_for.is_set()
        resume(barrier)


def test_it_waits_for_others_beside_its_own(barrier, in_thread):
    steps: list[str] = []

    def fork() -> None:
        with operation(barrier):
            assert stop(barrier) == 0
            steps.append("forked")
            resume(barrier)

    may_end = open_in_thread(barrier, in_thread, steps)
    forking = in_thread(fork)
    assert barrier._changed.is_waited_for.wait(10)
    may_end.set()
    forking.join(10)
    assert steps == ["opened", "forked"]


def test_the_lock_is_free_while_a_fork_waits(barrier, in_thread):
    """Connections that are open are checked out and in meanwhile, of each pool: all wait before one lock is held."""
    other = ForkBarrier(threading.RLock())
    is_forked = threading.Event()

    def fork() -> None:
        pools = Registry()
        pools._pools += [pool_of(other), pool_of(barrier)]
        pools.before_fork()
        is_forked.set()
        pools.after_fork_in_parent()

    may_end = open_in_thread(barrier, in_thread, steps=[])
    in_thread(fork)
    assert barrier._changed.is_waited_for.wait(10)
    for lock in barrier._lock, other._lock:
        assert lock.acquire(timeout=10)
        lock.release()
    assert not is_forked.is_set()
    may_end.set()
    assert is_forked.wait(10)


def test_all_pools_have_one_deadline(monkeypatch):
    """An hour at most, of which nothing is left for the second pool."""
    now, waited = 0.0, []
    monkeypatch.setattr(module, "MAX_WAIT", 3600)
    monkeypatch.setattr(time, "monotonic", lambda: now)

    class Silent(threading.Condition):
        def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
            nonlocal now
            waited.append(timeout)
            now += timeout or 0
            return False

    pools = Registry()
    for _ in range(3):
        barrier = ForkBarrier(threading.RLock())
        barrier._changed = Silent(barrier._lock)
        pools._pools.append(pool_of(barrier))
    pools.before_fork()
    pools.after_fork_in_parent()
    assert waited == [3600, 0, 0]


def test_a_fork_that_does_not_wait_is_logged(barrier, in_thread, monkeypatch, caplog):
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)
    monkeypatch.setattr(log, "unsaid", unsaid := deque())
    begun = in_thread(lambda: barrier.begin(object()))
    begun.join(10)
    pools = Registry()
    pools._pools.append(pool_of(barrier))
    pools.before_fork()
    pools.after_fork_in_parent()
    assert not caplog.messages
    assert len(unsaid) == 1
    log.tell()
    (message,) = caplog.messages
    assert "the process forked while connections were being opened or closed (1)" in message


def test_a_checkout_waits_for_a_fork_no_longer_than_it_has_time(barrier, in_thread):
    opened = threading.Event()

    def open_one() -> None:
        barrier.begin(None, 0.01)
        opened.set()

    stop(barrier)
    in_thread(open_one)
    assert opened.wait(5)
    resume(barrier)


def test_what_waits_goes_on_though_the_fork_had_no_lock(barrier, in_thread, monkeypatch):
    """Another thread had it for too long."""
    monkeypatch.setattr(module, "MAX_WAIT_FOR_LOCK", 0.01)
    has_it, may_release, opened = threading.Event(), threading.Event(), threading.Event()

    def have_lock() -> None:
        with barrier._lock:
            has_it.set()
            assert may_release.wait(10)

    def open_one() -> None:
        with operation(barrier):
            opened.set()

    holder = in_thread(have_lock)
    assert has_it.wait(10)
    barrier.raise_for_fork()
    barrier.hold()
    assert barrier._held == []
    may_release.set()
    holder.join(10)
    in_thread(open_one)
    assert barrier._changed.is_waited_for.wait(10)
    with barrier._lock:  # so it is waiting by now
        assert not opened.is_set()
    barrier.lower_after_fork()
    assert opened.wait(5)  # and not only after MAX_WAIT


def test_nobody_waits_for_a_fork_that_does_not_end(barrier, in_thread, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)
    opened = threading.Event()

    def open_one() -> None:
        with operation(barrier):
            opened.set()

    stop(barrier)
    in_thread(open_one)
    assert opened.wait(10)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_has_ended(barrier, error):
    with pytest.raises(error), operation(barrier):
        raise error
    assert not barrier.is_busy


def test_an_interrupt_on_its_way_out_holds_no_fork_up(barrier, monkeypatch):
    """Though somebody keeps the exception, and so the frame."""
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(barrier, "note_end", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept, operation(barrier):
        pass
    assert kept.traceback
    assert not barrier.is_busy
    stop(barrier)
    resume(barrier)
    assert not barrier._changed.is_waited_for.is_set()
