"""The last minutes of this process' pools, for the status page: their numbers once a second, and what has happened.

All of it is bounded. It is recorded from the import of ``monitoring.urls`` on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from django_mysqlpool import pool_statistics
from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.pool import events, fork
from django_mysqlpool.mysqlpool.pool.locks import RLock
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

#: Seconds between two points of the chart, and the most points of a pool: five minutes.
INTERVAL = 1.0
POINTS = 300
#: The most events.
EVENTS = 50
#: Seconds for which an event that happens again is the same event, counted.
SAME_FOR = 10.0
#: Seconds over which the rates are.
RATES_OVER = 10.0

#: What a chart shows of ``pool_statistics()``, and what is told as a rate.
SHOWN = ("out", "opening", "idle", "waiting")
COUNTED = ("checkouts", "waits", "timeouts")


class Point(NamedTuple):
    """The numbers of a pool at a moment."""

    #: ``time.monotonic()``
    at: float
    #: Of ``SHOWN``.
    shown: tuple[int, ...]
    #: Of ``COUNTED``, since the pool was made.
    counted: tuple[int, ...]


@dataclass
class Event:
    """Something that has happened to a pool, once or several times within ``SAME_FOR`` seconds."""

    pool: str
    kind: str
    text: str
    #: The first time, and the last; ``time.monotonic()``.
    first: float
    last: float
    count: int = 1


class History:
    """What is remembered of this process. A child of a fork begins anew."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def before_fork(self) -> None:
        """Nothing waits for this lock for long."""

    def after_fork_in_parent(self) -> None:
        """It goes on."""

    def after_fork_in_child(self) -> None:
        self._lock = RLock()
        self._points: dict[str, deque[Point]] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._next_at = 0.0

    def sample(self) -> None:
        """Remember the numbers of this moment if the last ones are a second old; the maintenance thread calls it."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + 0.9 * INTERVAL  # the rounds come by another clock
        try:
            self._remember(now, pool_statistics())
        except Exception as error:
            say(logging.ERROR, "The status page's history could not be recorded, and goes on.", error=error)

    def _remember(self, now: float, statistics: dict[str, dict[str, Any]]) -> None:
        with self._lock:
            for gone in self._points.keys() - statistics.keys():
                del self._points[gone]
            for name, numbers in statistics.items():
                points = self._points.setdefault(name, deque(maxlen=POINTS))
                shown, counted = (tuple(numbers[key] for key in keys) for keys in (SHOWN, COUNTED))
                points.append(Point(now, shown, counted))

    def note(self, pool: str, kind: str, text: str) -> None:
        """Remember an event; one that happens again soon is counted."""
        now = time.monotonic()
        with self._lock:
            event = self._recent(pool, text, now)
            if event is None:
                self._events.append(Event(pool, kind, text, now, now))
            else:
                event.count, event.last = event.count + 1, now

    def _recent(self, pool: str, text: str, now: float) -> Event | None:
        same = (event for event in self._events if (event.pool, event.text) == (pool, text))
        return next((event for event in same if now - event.first < SAME_FOR), None)

    def of_pool(self, name: str) -> dict[str, Any]:
        """The last minutes of a pool.

        :returns: lists of the same length, oldest first: ``ago`` (seconds) and each of ``SHOWN``
        """
        now = time.monotonic()
        points = self._points_of(name)
        columns = zip(*(point.shown for point in points), strict=True) if points else ((),) * len(SHOWN)
        return {
            "ago": [round(now - point.at, 1) for point in points],
            **{key: list(column) for key, column in zip(SHOWN, columns, strict=True)},
        }

    def rates_of(self, name: str) -> dict[str, float]:
        """How often each of ``COUNTED`` happens in a second, over the last ten."""
        now = time.monotonic()
        points = [point for point in self._points_of(name) if now - point.at <= RATES_OVER + INTERVAL]
        if len(points) < 2:
            return dict.fromkeys(COUNTED, 0.0)
        first, last = points[0], points[-1]
        return {
            key: round((now_counted - then_counted) / (last.at - first.at), 1)
            for key, then_counted, now_counted in zip(COUNTED, first.counted, last.counted, strict=True)
        }

    def _points_of(self, name: str) -> list[Point]:
        with self._lock:
            return list(self._points.get(name, ()))

    def events(self) -> list[dict[str, Any]]:
        """The last events, the newest first."""
        now = time.monotonic()
        with self._lock:
            newest_first = sorted(self._events, key=lambda event: event.last, reverse=True)
            return [
                {
                    "ago": round(now - event.last, 1),
                    "pool": event.pool,
                    "kind": event.kind,
                    "text": event.text,
                    "count": event.count,
                }
                for event in newest_first
            ]


history = History()


#: The kinds of events that are remembered, and their texts, of the facts that belong to them. (A checkout that waited is
#: none: under load each one is. The chart shows the waiting, and the rate counts it.)
_NOTED = {
    "opened": "connection opened",
    "closed": "connection closed: {reason}",
    "timeout": "PoolTimeout for alias {alias}",
    "leak": "out for longer than leak_after: {thread}",
    "server_changed": "another server: {after[0]} ({after[1]}) after {before[0]} ({before[1]})",
}


def _observe(kind: str, pool: Any, facts: dict[str, Any]) -> None:
    history.note(pool.name, kind, _NOTED[kind].format_map(facts))


def record() -> None:
    """Begin to remember; a second call changes nothing."""
    if history.sample in maintenance.after_round:
        return
    events.observe(_observe, *_NOTED)
    fork.take_part(history)
    maintenance.after_round.append(history.sample)
