"""Keeping house: one small thread a process that does for its pools what nobody waits for.

It is started by the first checkout and ends with the last open connection. A fork stops it, in the parent too, so that a
process with no thread of its own forks as one; the next checkout starts it again.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from . import report

if TYPE_CHECKING:
    from .pool import Pool

logger = logging.getLogger("django_mysqlpool")

#: Seconds between two rounds: what a thread leaves when it ends goes back within one.
ROUND = 0.5
#: Seconds of idleness that are allowed while neighbours are refused.
IDLE_UNDER_PRESSURE = 0.25
#: Seconds between two looks for pressure, at an idle server's cost of two queries; shorter where ``timeout`` is shorter.
LOOK_FOR_PRESSURE = 5.0
#: Seconds before the end of its life at which an idle connection is renewed, at most.
RENEW_AHEAD = 5.0
#: Seconds until the next attempt where a connection could not be opened to keep the pool warm.
PAUSE_AFTER_FAILURE = 5.0
#: Seconds that a fork waits for the thread to end what it is doing.
PATIENCE_AT_FORK = 1.0


class Chores:
    """What is done for one pool in each round."""

    def __init__(self, pool: Pool) -> None:
        self.pool: Pool = weakref.proxy(pool)
        self._next_look = time.monotonic() + self._look_interval()
        self._next_opening = 0.0

    def do(self) -> None:
        """One round. Whatever talks with the server here has a time limit."""
        # The main thread ends where the process does, and exit handlers may still use what it holds.
        self.pool.reclaim(spare=threading.main_thread())
        self._report_leaks()
        if self.pool.slots is None:
            return
        self._look_for_pressure()
        renewed = self._close_unfit()
        self._trim()
        self._open(0 if self.pool.pressure.is_high else max(renewed, self._missing()))

    def _report_leaks(self) -> None:
        leak_after = self.pool.options.leak_after
        if leak_after is None:
            return
        horizon = time.monotonic() - leak_after
        for lease in self.pool.leases():
            if lease.since <= horizon and not lease.is_reported:
                lease.is_reported = True
                report.leak(lease, leak_after)

    def _look_interval(self) -> float:
        return min(max(self.pool.timeout / 6, 1.0), LOOK_FOR_PRESSURE)

    def _look_for_pressure(self) -> None:
        slots = self.pool.slots
        now = time.monotonic()
        if slots is None or now < self._next_look:
            return
        self._next_look = now + self._look_interval()
        slots.with_an_idle_one(self._look_over)

    def _look_over(self, connection: Any) -> bool:
        """Look over an idle connection; whether it may still lie there afterwards: ``close_pool()`` did not see it."""
        session = connection.mysqlpool_session
        return self.pool.pressure.look(session) and session.generation == self.pool.generation

    def _close_unfit(self) -> int:
        """Close what would not be lent any more; how many of those have reached the end of their life."""
        slots = self.pool.slots
        if slots is None:
            return 0
        # (What has been opened while the pool was closed is not wanted either.)
        slots.close_unfit(
            lambda connection: not (self.pool.is_in_use and self.pool.is_presentable(connection.mysqlpool_session))
        )
        ahead = time.monotonic() + min(RENEW_AHEAD, 0.1 * self.pool.lifetime)
        return slots.close_unfit(lambda connection: self.pool.is_overdue(connection.mysqlpool_session, ahead))

    def _trim(self) -> None:
        slots = self.pool.slots
        if slots is None:
            return
        if self.pool.pressure.is_high:
            slots.trim(min(IDLE_UNDER_PRESSURE, slots.idle_timeout), 0)
        else:
            slots.trim(slots.idle_timeout, slots.min_idle)

    def _missing(self) -> int:
        slots = self.pool.slots
        if slots is None or not self.pool.is_in_use:
            return 0
        return slots.min_idle - slots.checkedin()

    def _open(self, number: int) -> None:
        """Open connections while there is room and nobody waits for it."""
        if number <= 0 or time.monotonic() < self._next_opening:
            return
        try:
            for _ in range(number):
                if not self.pool.is_in_use or not self.pool.open_one_more():
                    return
        except Exception as error:
            self._next_opening = time.monotonic() + PAUSE_AFTER_FAILURE
            logger.info("Pool %s: a connection to keep it warm could not be opened: %s", self.pool.name, error)


class Housekeeper:
    """The thread, and the pools it looks after; it holds them weakly."""

    def __init__(self) -> None:
        #: Re-entrant: the garbage collector may end a generator of the user's here, which asks for a connection.
        self._lock = threading.RLock()
        self._pools: weakref.WeakKeyDictionary[Pool, Chores] = weakref.WeakKeyDictionary()
        #: Its own; ``None``: it is not at work.
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def has_pools(self) -> bool:
        return bool(self._pools)

    def look_after(self, pool: Pool) -> None:
        """Take on a pool, and start the thread if it is not running."""
        with self._lock:
            if pool not in self._pools:
                self._pools[pool] = Chores(pool)
        self.start()

    def start(self) -> None:
        """Start the thread if it is not running."""
        with self._lock:
            if self.thread is not None:
                return
            self._stop.clear()
            self.thread = threading.Thread(target=self._run, name="mysqlpool-housekeeper", daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # the interpreter is ending
                self.thread = None

    def stop(self, patience: float | None = None) -> None:
        """End the thread, waiting at most ``patience`` seconds for what it is doing; a checkout starts a new one."""
        with self._lock:
            thread, self.thread = self.thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience)

    def _run(self) -> None:
        thread = threading.current_thread()
        while not self._stop.wait(ROUND) and self.thread is thread and self._has_work(thread):
            self._round()

    def _round(self) -> None:
        with self._lock:  # a pool may be added meanwhile
            rounds = tuple(self._pools.items())
        for pool, chores in rounds:
            try:
                chores.do()
            except Exception:  # noqa: PERF203 (one pool's trouble is not the others')
                logger.exception("Pool %s: housekeeping failed, and goes on.", pool.name)

    def _has_work(self, thread: threading.Thread) -> bool:
        """Whether any pool has a connection; where none has, the thread is about to end."""
        if self._is_any_open():
            return True
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
            return any(pool.sessions for pool in self._pools)


housekeeper = Housekeeper()
atexit.register(lambda: housekeeper.stop(PATIENCE_AT_FORK))


def before_fork() -> None:
    """Have no thread of ours in a process that forks; one that is in the middle of something is left to finish it."""
    housekeeper.stop(PATIENCE_AT_FORK)


def after_fork_in_parent() -> None:
    """Go on where there are other threads, whose end might have to be seen; else the next checkout goes on."""
    if housekeeper.has_pools and threading.active_count() > 1:
        housekeeper.start()


def after_fork_in_child() -> None:
    """A child looks after its own pools."""
    housekeeper.__init__()  # type: ignore[misc]
