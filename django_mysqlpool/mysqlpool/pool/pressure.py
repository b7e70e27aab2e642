"""Pressure: the server has as many connections as it takes, and processes must take turns."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from .connection import Session

#: Seconds for which the last sign of pressure holds.
LASTS = 10.0
#: Minimum seconds between two yielded connections, and minimum age of each.
YIELD_INTERVAL = 0.5
#: Seconds before the process that yielded one tries for a new one: longer than the pauses between its neighbours' attempts.
PAUSE_AFTER_YIELD = 0.5

# An answer of each is a few rows, and neither needs a privilege: without PROCESS one sees one's own account's connections.
_COUNTS = b"SHOW GLOBAL STATUS WHERE Variable_name IN ('Aborted_connects', 'Threads_connected')"
_LIMITS = b"SHOW VARIABLES WHERE Variable_name IN ('max_connections', 'max_user_connections')"
_OWN = b"SHOW PROCESSLIST"


class Pressure:
    """Pressure as a pool knows it: by its own refusals, and by probes of the server's counts."""

    def __init__(self) -> None:
        #: ``time.monotonic()``; 0: there has been none.
        self.until = 0.0
        self._next_yield = 0.0
        self._refusals: int | None = None

    def __repr__(self) -> str:
        return f"<Pressure {'high' if self.is_high else 'low'}>"

    def rise(self) -> None:
        """There is a sign of it."""
        self.until = time.monotonic() + LASTS

    @property
    def is_high(self) -> bool:
        return time.monotonic() < self.until

    def should_yield(self, created_at: float) -> bool:
        """Decide if a connection that was opened at ``created_at`` is yielded to another process now."""
        now = time.monotonic()
        if now >= self.until or now < self._next_yield or now - created_at < YIELD_INTERVAL:
            return False
        self._next_yield = now + YIELD_INTERVAL
        return True

    def probe(self, session: Session) -> bool:
        """Ask the server, over an idle session, if others are refused; ``False`` if it does not answer.

        A process that sits on idle connections hears nothing of its neighbours' refusals in any other way.
        """
        answer = _Counts.asked_of(session)
        if answer is None:
            return False
        if answer.is_full and answer.refusals != self._refusals:
            self.rise()
        self._refusals = answer.refusals
        return True


@dataclass
class _Counts:
    """The server's counts, as far as they matter here."""

    #: Attempts to connect that failed, for whatever reason.
    refusals: int
    is_full: bool

    @classmethod
    def asked_of(cls, session: Session) -> _Counts | None:
        counts = session.ask(_COUNTS)
        limits = None if counts is None else session.ask(_LIMITS)
        if counts is None or limits is None:
            return None
        # What answers may be a proxy, or a server that speaks MySQL's protocol and does not count all of these.
        values = {name.lower(): int(value) for name, value, *_ in (*counts, *limits)}
        is_full = values.get("threads_connected", 0) >= values.get("max_connections", math.inf)
        if not is_full and values.get("max_user_connections"):
            rows = session.ask(_OWN)
            if rows is None:
                return None
            users = {int(row[0]): row[1] for row in rows}
            own = users.get(session.connection.thread_id())
            is_full = sum(user == own for user in users.values()) >= values["max_user_connections"]
        return cls(values.get("aborted_connects", 0), is_full)
