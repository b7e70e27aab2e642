"""Warm threads for requests under ASGI, lent one at a time, first come first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class WarmThreads:
    """At most ``number`` threads, each started when first needed and kept for the next request."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._idle: list[ThreadPoolExecutor] = []
        self._all: list[ThreadPoolExecutor] = []
        self._waiting: deque[Loan] = deque()
        self._is_closed = False

    def take(self, loan: Loan) -> ThreadPoolExecutor | None:
        """A thread that is free; ``None`` where ``loan`` has to wait: it is told by ``Loan.begin``."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if len(self._all) >= self.number:
                self._waiting.append(loan)
                return None
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"mysqlpool-asgi-{len(self._all) + 1}")
            self._all.append(thread)
            return thread

    def give(self, thread: ThreadPoolExecutor) -> None:
        """Take an idle thread back, for the loan that has waited longest."""
        with self._lock:
            if self._waiting:
                loan = self._waiting.popleft()
            else:
                loan = None
                self._idle.append(thread)
        if loan is not None:
            loan.begin(thread)
        elif self._is_closed:
            self.close()

    def close(self) -> None:
        """End the threads: the idle ones now, the others when they come back and nobody waits for them."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._all = [thread for thread in self._all if thread not in idle]
        for thread in idle:
            thread.shutdown(wait=False)


class Loan(Executor):
    """One request's executor: it takes a warm thread with the first call and keeps it to ``finish()``.

    After ``share()``, when the response has begun and a slow client or a stream may take long, it keeps a thread only while
    a call runs in it, or while ``must_stay`` says that the thread holds something of the request's.
    """

    def __init__(self, threads: WarmThreads, must_stay: Callable[[threading.Thread | None], bool]) -> None:
        self._threads = threads
        self._must_stay = must_stay
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._worker: threading.Thread | None = None
        self._is_waiting = False
        self._is_sharing = False
        self._calls = 0
        self._queued: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run the call in the request's thread, behind the calls before it."""
        future: Future[R] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            self._call_ended()

        with self._lock:
            self._calls += 1
            if self._thread is None and not self._is_waiting:
                self._thread = self._threads.take(self)
                self._is_waiting = self._thread is None
            if self._thread is None:
                self._queued.append(call)
            else:
                self._thread.submit(call)
        return future

    def begin(self, thread: ThreadPoolExecutor) -> None:
        """Get the thread that was waited for."""
        with self._lock:
            self._is_waiting = False
            self._thread = thread
            while self._queued:
                thread.submit(self._queued.popleft())

    def share(self) -> None:
        """From now on, keep the thread no longer than a call needs it; and let it go now, if it is free."""
        with self._lock:
            self._is_sharing = True
        self._let_go()

    def finish(self, last: Callable[[], object] | None) -> None:
        """The request has ended: let its thread go, after what runs in it, and after ``last``."""
        with self._lock:
            self._is_sharing = True
            self._must_stay = _never
        if last is not None:
            self.submit(last)
        else:
            self._let_go()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the thread is not the borrower's to end (asgiref before 3.13 tries)."""

    def _call_ended(self) -> None:
        with self._lock:
            self._calls -= 1
            self._worker = threading.current_thread()
        self._let_go()

    def _let_go(self) -> None:
        """Give the thread back where nothing more is to be done in it."""
        with self._lock:
            if self._thread is None or self._calls or not self._is_sharing or self._must_stay(self._worker):
                return
            thread, self._thread = self._thread, None
        self._threads.give(thread)


def _never(_: object) -> bool:
    return False
