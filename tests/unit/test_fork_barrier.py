"""A fork waits for what is being opened or closed, and what begins meanwhile waits for the fork; neither for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from django_mysqlpool.mysqlpool.pool import fork as module
from django_mysqlpool.mysqlpool.pool.fork import ForkBarrier

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


@contextmanager
def operation(barrier: ForkBarrier) -> Iterator[None]:
    """Open or close a connection in the block."""
    this = object()
    try:
        barrier.begin(this)
        yield
    finally:
        barrier.operations.discard(this)
        barrier.note_end()


def stop(barrier: ForkBarrier) -> None:
    barrier.raise_for_fork()
    barrier._lock.release()  # so that others can be seen to wait for the fork, and not for the lock


def resume(barrier: ForkBarrier) -> None:
    barrier._lock.acquire()
    barrier.lower_after_fork()


def test_a_fork_waits_for_what_is_operations(barrier, in_thread, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAIT", 10)
    steps: list[str] = []
    under_way, may_end = threading.Event(), threading.Event()

    def open_one() -> None:
        with operation(barrier):
            under_way.set()
            assert may_end.wait(10)
            steps.append("opened")

    def fork() -> None:
        stop(barrier)
        steps.append("forked")
        assert not barrier.is_busy
        resume(barrier)

    in_thread(open_one)
    assert under_way.wait(10)
    assert barrier.is_busy
    forking = in_thread(fork)
    assert barrier._changed.is_waited_for.wait(10)
    may_end.set()
    forking.join(10)
    assert steps == ["opened", "forked"]


def test_what_begins_in_a_fork_waits_for_its_end(barrier, in_thread, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAIT", 10)
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


def test_a_fork_does_not_wait_for_a_server_that_is_silent(barrier, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)
    with operation(barrier):
        stop(barrier)
        assert barrier.is_busy
    resume(barrier)


def test_nor_does_anybody_wait_for_a_fork_that_does_not_end(barrier, in_thread, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAIT", 0.01)
    opened = threading.Event()

    def open_one() -> None:
        with operation(barrier):
            opened.set()

    stop(barrier)
    in_thread(open_one)
    assert opened.wait(10)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_is_not_operations_any_more(barrier, error):
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
