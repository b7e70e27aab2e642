"""Warm threads for requests under ASGI: each request has at most one, first come first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import filterfalse
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _OutOfThreads(RuntimeError):
    """No thread could be started for a call."""


class WarmThreads:
    """At most ``number`` threads. Each is started when it is first needed, and kept for the next request."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._idle: list[ThreadPoolExecutor] = []
        self._all: list[ThreadPoolExecutor] = []
        self._waiting: deque[Loan] = deque()
        self._is_closed = False

    def take(self, loan: Loan) -> ThreadPoolExecutor | None:
        """Return a free thread; or ``None`` if ``loan`` has to wait, until ``Loan.begin`` is called."""
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
        """Pass an idle thread to the loan that has waited longest, or keep it."""
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
        """End the idle threads now, and each other thread when it returns and no loan waits for it."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._all = [*filterfalse(idle.__contains__, self._all)]
        for thread in idle:
            thread.shutdown(wait=False)


class Loan(Executor):
    """The executor of one request. It gets a warm thread with its first call and keeps it until ``finish()``.

    ``share()`` is called when the response begins, because a slow client or a stream may then take long. Afterwards the
    loan keeps a thread only while a call runs in it, or while ``must_stay`` says that the thread has a connection of the
    request.
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
        self._queued: deque[tuple[Callable[[], None], Future[Any]]] = deque()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Schedule the call in the request's thread, after the calls before it."""
        future: Future[R] = Future()

        def call() -> None:
            if future.done() and not future.cancelled():
                return  # no thread could be started for the call, but the executor has kept it in its queue
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
                self._queued.append((call, future))
            else:
                self._start(self._thread, call, future)
        return future

    def _start(self, thread: ThreadPoolExecutor, call: Callable[[], None], future: Future[Any]) -> None:
        """Schedule a call in a thread. The caller holds the lock."""
        try:
            thread.submit(call)
        except RuntimeError as error:  # the process is out of threads
            self._calls -= 1
            future.set_exception(_OutOfThreads(*error.args))

    def begin(self, thread: ThreadPoolExecutor) -> None:
        """Receive the thread that this loan has waited for, and run the queued calls."""
        with self._lock:
            self._is_waiting = False
            self._thread = thread
            for call, future in self._queued:
                self._start(thread, call, future)
            self._queued.clear()
        self._let_go()

    def share(self) -> None:
        """Keep the thread from now on only while a call runs in it; return it now if it is free."""
        with self._lock:
            self._is_sharing = True
        self._let_go()

    def finish(self, last: Callable[[], object] | None) -> None:
        """Return the thread after the calls that run in it, and after ``last``. The request has ended."""
        with self._lock:
            self._is_sharing = True
            self._must_stay = _never
        ended = None if last is None else self.submit(last)
        self._let_go()
        if last is not None and ended is not None and ended.done() and isinstance(ended.exception(), _OutOfThreads):
            last()  # the connections must return, so they return in this thread

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the thread is kept for the next request (asgiref before 3.13 tries to end it)."""

    def _call_ended(self) -> None:
        with self._lock:
            self._calls -= 1
            self._worker = threading.current_thread()
        self._let_go()

    def _let_go(self) -> None:
        """Return the thread if nothing more has to run in it."""
        with self._lock:
            if self._thread is None or self._calls or not self._is_sharing or self._must_stay(self._worker):
                return
            thread, self._thread = self._thread, None
        self._threads.give(thread)


def _never(_: object) -> bool:
    return False
