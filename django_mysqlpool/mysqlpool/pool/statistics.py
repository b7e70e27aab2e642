"""The counts of a pool since it was made."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_mysqlpool.mysqlpool import compat

from .history import BOUNDS, Usage
from .locks import RLock
from .sizing import Period

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.errors import PoolTimeout

    from .connection import Lease, Session

#: The advice about a pool's size is from the counts of so many minutes; the seconds of one.
MINUTES, MINUTE = 10, 60.0


class Histogram:
    """How many times lay within each of the buckets of ``BOUNDS``, and how long all of them were."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        bucket = bisect_left(BOUNDS, seconds)
        self.sum += seconds
        self.counts[bucket] += 1


def as_dict(counts: list[int], seconds: float) -> dict[str, Any]:
    """A histogram, for people."""
    return {"bounds": list(BOUNDS), "counts": counts, "sum": seconds, "count": sum(counts)}


class Statistics:
    """Counts what happens in a pool.

    The thread that has a connection counts its checkouts in the session's own record, without a lock. Everything else is
    rare, and is counted under the lock. The changes that belong together follow each other without a call in between, at
    which an interrupt could come, and so does the change of the set of sessions.

    :param emit: tells observers of an event: is called with its kind, and the facts
    """

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        #: (Re-entrant: the garbage collector may close a connection anywhere.)
        self._lock = RLock()
        self.made_at = monotonic()
        #: The open ones. Other threads change the set, so iterate over a copy.
        self.sessions: set[Session] = set()
        self._opened = 0
        self._closed: defaultdict[str, int] = defaultdict(int)
        #: Of the sessions that are closed.
        self._checkouts = self._warm_checkouts = 0
        self._use_counts, self._use_sum = [0] * (len(BOUNDS) + 1), 0.0
        #: Of events: ``waits``, ``timeouts``, ``refusals``, ``open_failures``, ``resets``, ``leaks``, ``reclaimed``.
        self._events: defaultdict[str, int] = defaultdict(int)
        #: How many connections had to stay between statements, by the reason; if ``release`` is "transaction".
        self._pins: defaultdict[str, int] = defaultdict(int)
        #: ``wait_time``, ``connect_time`` and ``reset_time``.
        self._times = {"wait_time": Histogram(), "connect_time": Histogram(), "reset_time": Histogram()}
        #: The counts of the last minutes, by when they were taken.
        self._minutes = deque([(self.made_at, self.snapshot())], maxlen=MINUTES)

    @property
    def is_counting_here(self) -> bool:
        """True if the calling thread is in the middle of counting: the garbage collector is calling."""
        return compat.is_owned(self._lock)

    # Counting

    def _count(self, event: str, name: str | None = None, seconds: float = 0.0) -> None:
        """Count an event, and the seconds that something took."""
        with self._lock:
            self._events[event] += 1
            if name is not None:
                self._times[name].add(seconds)

    def note_wait(self, alias: str, seconds: float, *, has_waited: bool) -> None:
        """A checkout found no connection ready, and has one now.

        :param seconds: that it took
        :param has_waited: no slot was free
        """
        if not has_waited:
            with self._lock:
                self._times["wait_time"].add(seconds)
            return
        self._count("waits", "wait_time", seconds)
        self._emit("wait", alias=alias, seconds=seconds)

    def note_timeout(self, error: PoolTimeout, event: str) -> None:
        """A checkout ends with an error: ``timeouts``, or ``refusals`` if too many waited already."""
        self._count(event)
        self._emit("timeout", alias=error.alias, error=error)

    def note_reset(self, seconds: float, reason: str | None) -> None:
        """A session has been reset, because of a statement of this kind; ``None``: ``reset`` is "always"."""
        self._count("resets", "reset_time", seconds)
        self._emit("reset", seconds=seconds, reason=reason)

    def note_pin(self, reason: str) -> None:
        """A connection had to stay between statements."""
        with self._lock:
            self._pins[reason] += 1
        self._emit("pin", reason=reason)

    def note_leak(self, lease: Lease) -> None:
        """A connection has been out for longer than ``leak_after``."""
        self._count("leaks")
        seconds = monotonic() - lease.checked_out_at
        self._emit("leak", lease=lease, alias=lease.alias, thread=lease.thread.name, seconds=seconds)

    def note_reclaimed(self) -> None:
        """A connection is taken from a holder that has ended, or was dropped."""
        self._count("reclaimed")

    def note_open_failure(self) -> None:
        """A connection could not be opened."""
        self._count("open_failures")

    def note_server_change(self, change: Mapping[str, tuple[str | None, str | None]]) -> None:
        """A connection has been opened to another server than the last one."""
        self._emit("server_changed", **change)

    def note_opened(self, session: Session, seconds: float) -> None:
        """A connection is open; to open it took ``seconds``."""
        with self._lock:
            self._times["connect_time"].add(seconds)
            self._opened += 1
            self.sessions.add(session)
        self._emit("opened", session=session, seconds=seconds)

    def note_closed(self, session: Session, reason: str) -> bool:
        """A connection is closed.

        :returns: ``False`` if that was known
        """
        usage = session.history.usage
        with self._lock:
            use_counts = self._use_counts_with(usage)
            if session not in self.sessions:
                return False
            self._closed[reason] += 1
            # (A lease that it still had has ended with it: its checkouts are checkins, too.)
            self._checkouts += usage.checkouts
            self._warm_checkouts += usage.warm_checkouts
            self._use_counts = use_counts
            self._use_sum += usage.use_sum
            self.sessions.discard(session)
        self._emit("closed", session=session, reason=reason)
        return True

    def _use_counts_with(self, usage: Usage) -> list[int]:
        before: list[int] | None = None
        while before is not self._use_counts:  # else the garbage collector has closed another one meanwhile
            before = self._use_counts
            use_counts = list(map(int.__add__, before, usage.use_counts))
        return use_counts

    # Telling

    def mark_minute(self) -> None:
        """Remember the counts, if a minute has passed since that was done."""
        if monotonic() - self._minutes[-1][0] >= MINUTE:
            self._minutes.append((monotonic(), self.snapshot()))

    def last_minutes(self, counts: Mapping[str, Any]) -> Period:
        """The period that began when the first of the remembered minutes did.

        :param counts: of this moment
        """
        since, before = self._minutes[0]
        return Period(
            seconds=monotonic() - since,
            checkouts=counts["checkouts"] - before["checkouts"],
            waits=counts["waits"] - before["waits"],
            failures=sum(counts[key] - before[key] for key in ("timeouts", "refusals")),
            use_seconds=counts["use_time"]["sum"] - before["use_time"]["sum"],
        )

    @property
    def pins(self) -> dict[str, int]:
        return dict(self._pins)

    def snapshot(self) -> dict[str, Any]:
        """The counts, all of one moment: what has been opened is closed or open, what was checked out is back or out."""
        with self._lock:
            return self._count_settled()

    def _count_settled(self) -> dict[str, Any]:
        """Count anew if the garbage collector has closed a connection meanwhile, in this thread."""
        while True:
            moment = self._opened, len(self.sessions)
            counts = self._count_up()
            if moment == (self._opened, len(self.sessions)):
                return counts

    def _count_up(self) -> dict[str, Any]:
        sessions = self.sessions.copy()
        checkouts = checkins = self._checkouts
        warm, use_counts, use_sum = self._warm_checkouts, self._use_counts, self._use_sum
        out = 0
        for session in sessions:
            usage = session.history.usage
            # (Loaded without a call in between, at which another thread could come.)
            lease, given, returned = session.lease, usage.checkouts, usage.checkins
            out += lease is not None
            checkouts += given
            checkins += returned
            warm += usage.warm_checkouts
            use_counts = list(map(int.__add__, use_counts, usage.use_counts))
            use_sum += usage.use_sum
        times = {name: as_dict(times.counts.copy(), times.sum) for name, times in self._times.items()}
        counted = {
            "open": len(sessions),
            "out": out,
            "idle": len(sessions) - out,
            "checkouts": checkouts,
            "checkins": checkins,
            "opened": self._opened,
            "closed": dict(self._closed),
            "pins": dict(self._pins),
            **dict.fromkeys(("waits", "timeouts", "refusals", "open_failures", "resets", "leaks", "reclaimed"), 0),
            **self._events,
        }
        # Those that found a connection ready have waited for nothing that could be measured.
        wait_time = times["wait_time"]
        wait_time["counts"][0] += warm
        wait_time["count"] += warm
        return {**counted, **times, "use_time": as_dict(list(use_counts), use_sum)}
