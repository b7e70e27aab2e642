"""Warm threads for requests under ASGI: each request has at most one, first come first served.

A request that has a connection, in a thread of asyncio's for instance, waits for no warm thread: those that have them may
be waiting for that connection, and then both would wait until the pool's timeout. It gets a thread beyond the number.

The locks are re-entrant: while a thread has one, the garbage collector may end a generator that asks for a connection.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import count, filterfalse
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from django_mysqlpool.mysqlpool.log import logger
from django_mysqlpool.mysqlpool.pool.locks import RLock

from .closes import idle_close

P = ParamSpec("P")
R = TypeVar("R")

#: A thread's calls, in their order; ``None`` ends it.
Calls = SimpleQueue[Callable[[], object] | None]
#: The calls of each thread that has been started.
_calls_of: WeakKeyDictionary[threading.Thread, Calls] = WeakKeyDictionary()


class WarmThread:
    """A thread that makes the calls it is given, one after the other.

    (A ``ThreadPoolExecutor`` of one worker does so too, but for each call it makes a future and takes several locks: 4 % of
    a short request.)
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._calls: Calls = SimpleQueue()

    def submit(self, call: Callable[[], object]) -> None:
        """Have a call made, after those before it.

        :raises RuntimeError: if the thread can't be started
        """
        if self._thread is None or not self._thread.is_alive():  # of a child, its parent may have started it
            self._start()
        self._calls.put(call)

    def _start(self) -> None:
        calls: Calls = SimpleQueue()
        # (In no context: the thread is not part of the request that happened to start it.)
        thread = threading.Thread(target=Context().run, args=(_make, calls), name=self._name, daemon=True)
        thread.start()
        self._thread, self._calls = thread, calls
        _calls_of[thread] = calls
        # Python calls first what is registered last, so before what the calls may need, such as maintenance, has ended.
        atexit.unregister(_end_all)
        atexit.register(_end_all)

    def end(self) -> None:
        """Let the thread end after the calls that it has."""
        self._calls.put(None)

    __del__ = end


def _make(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        try:
            call()
        except BaseException:  # the thread is there for the next one
            logger.exception("A call in %s failed.", threading.current_thread().name)
        del call  # and keeps nothing of the request while it waits


def _end_all() -> None:
    """Let what runs come to its end before Python does, as executors do."""
    threads = [*_calls_of.items()]
    for _, calls in threads:
        calls.put(None)
    for thread, _ in threads:
        thread.join()


class WarmThreads:
    """``number`` threads. Each is started when it is first needed, and kept for the next request.

    While there are more, for requests that must not wait, a thread that returns is ended.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = RLock()
        self._idle: list[WarmThread] = []
        self._all: list[WarmThread] = []
        self._waiting: deque[Loan] = deque()
        self._numbers = count(1)
        self._is_closed = False

    def take(self, loan: Loan, *, may_wait: bool) -> WarmThread | None:
        """Return a free thread; or ``None`` if ``loan`` has to wait, until ``Loan.begin`` is called."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if len(self._all) >= self.number and may_wait:
                self._waiting.append(loan)
                return None
            return self._add()

    def take_for_waiting(self, loan: Loan) -> WarmThread | None:
        """Return a thread beyond the number for a loan that waits; ``None`` if it is about to get another one."""
        with self._lock:
            try:
                self._waiting.remove(loan)
            except ValueError:
                return None
            return self._add()

    def _add(self) -> WarmThread:
        thread = WarmThread(f"mysqlpool-asgi-{next(self._numbers)}")
        self._all.append(thread)
        return thread

    def give(self, thread: WarmThread) -> None:
        """Pass an idle thread to the loan that has waited longest, or keep it, or end it if there are too many."""
        loan = None
        with self._lock:
            is_surplus = len(self._all) > self.number
            if is_surplus:
                self._all.remove(thread)
            elif self._waiting:
                loan = self._waiting.popleft()
            else:
                self._idle.append(thread)
        if is_surplus:
            thread.end()
        elif loan is not None:
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
            thread.end()


@dataclass(eq=False, slots=True)
class _Call:
    """A call that is to be made in a warm thread.

    :param refuse: is called instead, with the error, if no thread can be started for it
    """

    make: Callable[[], None]
    refuse: Callable[[RuntimeError], object]
    refusal: RuntimeError | None = None

    def tell_if_refused(self) -> None:
        if self.refusal is not None:
            self.refuse(self.refusal)


class Loan(Executor):
    """The executor of one request. It gets a warm thread with its first call and keeps it until ``finish()``.

    ``share()`` is called when the response begins, because a slow client or a stream may then take long. Afterwards the
    loan keeps a thread only while a call runs in it, or while ``must_stay`` says that the thread has a connection of the
    request.

    :param has_connection: tells if the request has one in any thread; ``hurry()`` is called when it gets one
    """

    def __init__(
        self,
        threads: WarmThreads,
        must_stay: Callable[[threading.Thread | None], bool],
        has_connection: Callable[[], bool],
    ) -> None:
        self._threads = threads
        self._must_stay = must_stay
        self._has_connection = has_connection
        self._lock = RLock()
        self._thread: WarmThread | None = None
        self._worker: threading.Thread | None = None
        self._is_waiting = False
        self._is_sharing = False
        self._calls = 0
        self._queued: deque[_Call] = deque()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:  # type: ignore[override]
        """Schedule the call in the request's thread, after the calls before it; but close an idle response at once.

        It is called in the event loop, and ``loop.run_in_executor()`` takes its future as it is. For one of
        ``concurrent.futures`` asyncio makes another one, with callbacks for both: 4 % of a short request.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        close = None if self._calls else idle_close(fn)
        if close is not None:
            future.set_result(close())
            return future

        def answer(settle: Callable[[Any], None], outcome: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, future, settle, outcome)

        def make() -> None:
            answered: tuple[Callable[[Any], None], object] | None = None
            try:
                if not future.cancelled():
                    answered = future.set_result, fn(*args, **kwargs)
            except BaseException as error:
                answered = future.set_exception, error
            try:
                self._call_ended()  # first: the event loop goes on with a thread that is free
            finally:
                if answered is not None:
                    answer(*answered)

        self._schedule(_Call(make, partial(answer, future.set_exception)))
        return future

    def run(self, function: Callable[[], object]) -> None:
        """Schedule a checkin, which nobody awaits. It is made here if no thread can be started for it."""

        def make() -> None:
            try:
                function()
            finally:
                self._call_ended()

        self._schedule(_Call(make, lambda _: function()))

    def _schedule(self, call: _Call) -> None:
        with self._lock:
            self._calls += 1
            if self._thread is None and not self._is_waiting:
                self._thread = self._threads.take(self, may_wait=not self._has_connection())
                self._is_waiting = self._thread is None
            if self._thread is None:
                self._queued.append(call)
            else:
                self._start(self._thread, call)
        call.tell_if_refused()

    def _start(self, thread: WarmThread, call: _Call) -> None:
        """Schedule a call in a thread. The caller holds the lock, and calls ``tell_if_refused()`` when it is released."""
        try:
            thread.submit(call.make)
        except RuntimeError as error:  # the process is out of threads
            self._calls -= 1
            call.refusal = error

    def hurry(self) -> None:
        """The request has got a connection: wait for a thread no longer."""
        with self._lock:
            thread = self._threads.take_for_waiting(self) if self._is_waiting else None
        if thread is not None:
            self.begin(thread)

    def begin(self, thread: WarmThread) -> None:
        """Receive the thread that this loan has waited for, and run the queued calls."""
        with self._lock:
            self._is_waiting = False
            self._thread = thread
            calls = [*self._queued]
            self._queued.clear()
            for call in calls:
                self._start(thread, call)
        for call in calls:
            call.tell_if_refused()
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
        if last is not None:
            self.run(last)
        self._let_go()

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


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], outcome: object) -> None:
    if not future.done():  # the request was cancelled meanwhile
        settle(outcome)


def _never(_: object) -> bool:
    return False
