"""Maintenance: one small thread a process that does for its pools what nobody waits for.

It is started by the first checkout and ends with the last open connection. A fork stops it, in the parent too, so that a
process with no thread of its own forks as one; the next checkout starts it again.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.log import here, say, tell, unsaid

from . import fork, reports, trace
from .locks import RLock
from .tasks import Task, tasks_for

if TYPE_CHECKING:
    from .pool import Pool

#: Seconds between two rounds: what a thread leaves when it ends goes back within one.
ROUND = 0.5
#: Seconds until the next attempt if no thread could be started.
PAUSE_AFTER_FAILURE = 5.0
#: Seconds that a fork waits for the thread to end what it is doing.
MAX_WAIT_AT_FORK = 1.0

_NAME = "mysqlpool-housekeeper"


class PoolMaintenance:
    """The tasks of one pool, which is held weakly."""

    def __init__(self, pool: Pool) -> None:
        self._tasks: list[Task] = tasks_for(weakref.proxy(pool))
        #: A thread is at it; another one that comes meanwhile passes by.
        self.is_under_way = False

    def __repr__(self) -> str:
        return f"<PoolMaintenance {self._tasks}{', under way' if self.is_under_way else ''}>"

    def run(self) -> None:
        """One round. Whatever talks with the server here has a time limit."""
        for task in self._tasks:
            task.run()


class MaintenanceThread:
    """The thread, and the pools it looks after; it holds them weakly.

    Before it waits, for a server or for a handler of a log, it hands over to a new thread, which passes by what the first
    one is at, and the first one ends when it is done with that: no pool's trouble is another's.
    """

    def __init__(self) -> None:
        #: Called at the end of each round.
        self.after_round: list[Callable[[], None]] = [reports.tell_forgotten, trace.refresh]
        #: Called after each pool's tasks, and after log handlers: returns what code of the user's has taken in the thread.
        self.release_connections: Callable[[], None] = lambda: None
        self._reset()

    def _reset(self) -> None:
        #: Re-entrant: the garbage collector may end a generator of the user's here, which asks for a connection.
        self._lock = RLock()
        self._pools: weakref.WeakKeyDictionary[Pool, PoolMaintenance] = weakref.WeakKeyDictionary()
        #: Its own; ``None``: it is not at work.
        self.thread: threading.Thread | None = None
        #: Those that have handed over and are not done yet.
        self._former: set[threading.Thread] = set()
        #: The pools that are still to be maintained in this round.
        self._rest: deque[tuple[Pool, PoolMaintenance]] = deque()
        self._stop = threading.Event()
        self._next_start = 0.0
        self._has_told_failure = False
        self._is_telling = False
        self._is_at_exit = False

    def look_after(self, pool: Pool) -> None:
        """Take on a pool, and start the thread if it is not running."""
        trace.refresh()
        with self._lock:
            if pool not in self._pools:
                self._pools[pool] = PoolMaintenance(pool)
        self.start()

    def forget(self, pool: Pool) -> None:
        """Look after a pool no more."""
        with self._lock:
            self._pools.pop(pool, None)

    def start(self) -> None:
        """Start the thread if it is not running."""
        with self._lock:
            if self.thread is None or compat.has_ended(self.thread):
                self._stop.clear()
                self._rest.clear()
                self._start()

    def _start(self) -> None:
        """Under the lock: start a thread, or leave ``None`` in its place."""
        self.thread = None
        if time.monotonic() < self._next_start:
            return
        try:
            # (In no context: what is done here is not part of the work that happened to start it.)
            self.thread = threading.Thread(target=Context().run, args=(self._run,), name=_NAME, daemon=True)
            self.thread.start()
        except (RuntimeError, MemoryError) as error:
            self.thread = None
            self._next_start = time.monotonic() + PAUSE_AFTER_FAILURE
            if not (self._is_at_exit or self._has_told_failure):
                self._has_told_failure = True
                say(
                    logging.WARNING,
                    "The maintenance thread of the pools could not be started (%s): nothing is trimmed, renewed, "
                    "kept warm or reclaimed from threads that have ended until it can be, which is tried every %g s.",
                    error,
                    PAUSE_AFTER_FAILURE,
                )
        except BaseException:  # an interrupt; if the thread runs nevertheless, it sees that it is not the one, and ends
            self.thread = None
            raise
        else:
            self._has_told_failure = False

    def hand_over(self) -> None:
        """The calling thread is about to wait: if it is the maintenance thread, a new one goes on with everything else."""
        thread = threading.current_thread()
        if self.thread is not thread:
            return
        with self._lock:
            if self.thread is not thread:
                return
            thread.name = f"{_NAME}-former"
            self._former.add(thread)
            self._start()
            if self.thread is None:  # there is no thread to be had: everything else waits, too
                self.thread = thread
                self._former.discard(thread)
                thread.name = _NAME

    def stop(self, timeout: float | None = None) -> None:
        """End the thread; a checkout starts a new one.

        :param timeout: how many seconds to wait at most for what it is doing
        """
        with self._lock:
            threads = self._living()
            self.thread = None
            self._stop.set()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _living(self) -> list[threading.Thread]:
        return [thread for thread in (self.thread, *self._former) if thread is not None and not compat.has_ended(thread)]

    def end(self) -> None:
        """The interpreter is about to end: no thread can be started any more."""
        self._is_at_exit = True
        self.stop(MAX_WAIT_AT_FORK)
        tell()

    def _run(self) -> None:
        thread = threading.current_thread()
        try:
            self._do_rounds(thread)
            self._end_round()  # after the last connection, which a thread that has handed over may have closed
        finally:
            with self._lock:
                self._former.discard(thread)
                if self.thread is thread:
                    self.thread = None

    def _do_rounds(self, thread: threading.Thread) -> None:
        self._go_on(thread)
        while self.thread is thread and not self._stop.wait(ROUND) and self._has_work(thread):
            with self._lock:  # a pool may be added meanwhile
                self._rest.extend(self._pools.items())
            self._go_on(thread)

    def _go_on(self, thread: threading.Thread) -> None:
        """Do the rest of the round, unless another thread comes to do it."""
        while self._rest:
            pool, tasks = self._rest.popleft()
            if not tasks.is_under_way:
                self._maintain(pool, tasks)
            if self.thread is not thread:
                return
        self._end_round()
        self._tell()

    def _maintain(self, pool: Pool, tasks: PoolMaintenance) -> None:
        tasks.is_under_way = here.is_held = True
        try:
            tasks.run()
        except Exception as error:
            say(logging.ERROR, "Pool %s: maintenance failed, and goes on.", pool.name, error=error)
        finally:
            tasks.is_under_way = here.is_held = False
            self.release_connections()

    def _tell(self) -> None:
        """Log what has been said anywhere; a handler may wait for a connection."""
        if not unsaid or self._is_telling:
            return
        self._is_telling = True
        try:
            self.hand_over()
            with suppress(Exception):  # of a filter, say; logging deals with those of handlers
                tell(self.release_connections)
        finally:
            self._is_telling = False

    def _end_round(self) -> None:
        for call in self.after_round:
            call()

    def _has_work(self, thread: threading.Thread) -> bool:
        """True if any pool has a connection; if none has, the thread is about to end."""
        if self._is_any_open():
            return self.thread is thread
        with self._lock:
            if self.thread is thread:
                # First this and then another look: a checkout looks at it after its connection has been opened.
                self.thread = None
                if self._is_any_open():
                    self.thread = thread
                    return True
        return False

    def _is_any_open(self) -> bool:
        with self._lock:
            return bool(unsaid) or any(pool.sessions for pool in self._pools)

    # Around a fork

    def before_fork(self) -> None:
        """Have no thread of ours in a process that forks; one that is in the middle of something is left to finish it."""
        self.stop(MAX_WAIT_AT_FORK)

    def after_fork_in_parent(self) -> None:
        """Go on if there are other threads, whose end might have to be seen; else the next checkout goes on."""
        if self._pools and threading.active_count() > 1:
            self.start()

    def after_fork_in_child(self) -> None:
        """A child looks after its own pools. What its parent has still to say, its parent says."""
        unsaid.clear()
        self._reset()


maintenance = MaintenanceThread()
atexit.register(maintenance.end)
fork.take_part(maintenance)
