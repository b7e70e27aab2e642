"""The tasks that maintenance does for a pool in each round."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

from django_mysqlpool.mysqlpool.errors import PoolTimeout
from django_mysqlpool.mysqlpool.log import say

from . import reports
from .connector import ConnectRequest, PoolForgotten
from .states import CloseReason

if TYPE_CHECKING:
    from .pool import Pool
    from .slot_pool import SlotPool

#: Seconds of idleness that are allowed while neighbours are refused.
IDLE_UNDER_PRESSURE = 0.25
#: Seconds between two probes for pressure, at an idle server's cost of two queries; shorter if ``timeout`` is shorter.
PROBE_INTERVAL = 5.0
#: Seconds before the end of its life at which an idle connection is renewed, at most.
RENEW_AHEAD = 5.0
#: Seconds of idleness that are allowed if no alias leads to the pool any more.
IDLE_IF_UNWANTED = 5.0
#: Seconds until the next attempt if a connection could not be opened to keep the pool warm.
PAUSE_AFTER_FAILURE = 5.0


class Task(ABC):
    """Something that is done for a pool in each round."""

    def __init__(self, pool: Pool) -> None:
        #: A weak proxy of it. (A strong reference to anything of its would keep it for good.)
        self.pool = pool

    def __repr__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self) -> None:
        """Do it. Whatever waits for a server has a time limit, and hands the thread over first."""


class Reclaim(Task):
    """Reclaims what nobody will return."""

    def run(self) -> None:
        # The main thread ends when the process does, and exit handlers may still use what it holds.
        self.pool.reclaim(spare=threading.main_thread())


class ReportLeaks(Task):
    """Logs connections that have been out for longer than ``leak_after`` seconds."""

    def run(self) -> None:
        leak_after = self.pool.options.leak_after
        if leak_after is None:
            return
        horizon = time.monotonic() - leak_after
        for lease in self.pool.reclaimer.leases():
            if lease.checked_out_at <= horizon and reports.leak(lease, leak_after):
                self.pool.statistics.note_leak(lease)


class MarkMinutes(Task):
    """Remembers the counts of each minute, for the advice about the pool's size."""

    def run(self) -> None:
        self.pool.statistics.mark_minute()


class RefreshAliases(Task):
    """Checks if aliases whose settings have been changed still lead to the pool."""

    def run(self) -> None:
        self.pool.aliases.refresh()


class CloseUnwanted(Task):
    """Closes what is idle in a pool that no alias leads to: at once if each was removed, otherwise after a while.

    Settings may lead to one pool and to another in turn, as those of a site with a database for each tenant do.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._unwanted_since = math.inf

    def run(self) -> None:
        pool, source = self.pool, self.pool.source
        now = time.monotonic()
        if pool.aliases.is_wanted() or not pool.sessions:
            self._unwanted_since = math.inf
            return
        self._unwanted_since = min(self._unwanted_since, now)
        if source.has_queue:
            cast("SlotPool", source).idle_slots.trim(0 if pool.aliases.is_left() else IDLE_IF_UNWANTED, 0, "unwanted")
        elif pool.aliases.is_left() or now - self._unwanted_since >= IDLE_IF_UNWANTED:
            self._unwanted_since = now
            pool.close("unwanted")


class QueueTask(Task):
    """A task for a pool with a queue."""

    @property
    def source(self) -> SlotPool:
        return cast("SlotPool", self.pool.source)  # as ``has_queue`` says


class ProbePressure(QueueTask):
    """Asks the server, over an idle connection, if other processes are refused."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._interval = min(max(pool.source.timeout / 6, 1.0), PROBE_INTERVAL)
        self._next = time.monotonic() + self._interval

    def run(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self.source.idle_slots.with_longest_idle(self._probe)

    def _probe(self, connection: Any) -> CloseReason | None:
        """Probe over an idle connection; tell if it is to be closed afterwards: ``close_pool()`` did not see it."""
        self.pool.connector.hand_over()
        if not self.pool.pressure.probe(connection.mysqlpool_session):
            return "lost"
        return None if self.pool.liveness.is_current(connection) else self.pool.connector.reason_of_generation


class KeepIdle(QueueTask):
    """Closes idle connections that would not be handed out any more or are too many, and opens those that are missing."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._next_opening = 0.0
        #: Connections that end before are renewed now; ``time.monotonic()``.
        self._ahead = 0.0

    def run(self) -> None:
        pool, source = self.pool, self.source
        # (What has been opened while the pool was closed is not wanted either.)
        self._ahead = time.monotonic() + min(RENEW_AHEAD, 0.1 * pool.server.lifetime)
        closed = source.idle_slots.close_unfit(self._reason_to_close)
        source.close_surplus()
        if pool.pressure.is_high:
            source.idle_slots.trim(min(IDLE_UNDER_PRESSURE, source.idle_timeout), 0, "yielded")
            return
        source.idle_slots.trim(source.idle_timeout, source.min_idle, "idle")
        is_kept_warm = pool.is_in_use and pool.aliases.is_wanted()
        renewed = closed["expired"] + closed["drained"]
        self._open(max(renewed, source.min_idle - source.checkedin() if is_kept_warm else 0))

    def _reason_to_close(self, connection: Any) -> CloseReason | None:
        pool, session = self.pool, connection.mysqlpool_session
        if not pool.is_in_use or session.generation != pool.connector.generation:
            return pool.connector.reason_of_generation
        if session.has_hung_up():
            return "lost"
        return "expired" if session.is_expired(pool.server.lifetime, self._ahead) else None

    def _open(self, number: int) -> None:
        """Open connections while there is room and nobody waits for it."""
        if number <= 0 or time.monotonic() < self._next_opening:
            return
        try:
            self._open_up_to(number)
        except Exception as error:
            self._next_opening = time.monotonic() + PAUSE_AFTER_FAILURE
            say(logging.INFO, "Pool %s: a connection to keep it warm could not be opened: %s", self.pool.name, error)

    def _open_up_to(self, number: int) -> None:
        for _ in range(number):
            if not self.pool.is_in_use or not open_one_more(self.pool):
                break


def open_one_more(pool: Pool) -> bool:
    """Open a connection, to lie idle in a pool.

    Its first borrower sets the session up: what Django and the receivers of its signals then send has no time limit.

    :returns: ``False`` if there is no room for one, or nobody who would want it
    """
    pool.connector.hand_over()
    found = pool.aliases.borrower()
    if found is None:
        return False
    borrower, params = found
    request = ConnectRequest(time.monotonic() + pool.source.timeout, borrower=borrower, params=params)
    request.needs_new = request.is_maintenance = True
    try:
        pool.source.release(pool.acquire(request))
    except (PoolTimeout, PoolForgotten):
        return False
    finally:
        request.is_finished = True
    return True


def tasks_for(pool: Pool) -> list[Task]:
    """The tasks of a pool, in their order.

    :param pool: a weak proxy of it
    """
    tasks: list[Task] = [Reclaim(pool), ReportLeaks(pool), MarkMinutes(pool), RefreshAliases(pool), CloseUnwanted(pool)]
    if pool.source.has_queue:
        tasks += [ProbePressure(pool), KeepIdle(pool)]
    return tasks
