"""When a pool may open a connection: at any time, or, since the last attempt failed, one at a time and after a pause."""

from __future__ import annotations

import random
import time

#: Seconds between attempts where the server is full: the first pause, and the longest; each is up to twice the last.
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.25
#: The shortest part of a pause: processes that were refused together don't come back together.
JITTER = 0.5


class Gate:
    """Keeps a crowd from a server that has just refused, or that is down.

    Open, it lets everybody through. Closed by a failure, it lets one attempt through at a time, until one succeeds. Its
    methods are called under its pool's lock.
    """

    def __init__(self) -> None:
        #: Attempts that failed since the last one that succeeded.
        self.failures = 0
        self._is_trying = False
        self._pause = 0.0
        self._opens_at = 0.0

    def __repr__(self) -> str:
        return f"<Gate {'open' if self.is_open else f'closed after {self.failures} failures'}>"

    @property
    def is_open(self) -> bool:
        return not self.failures

    def admit(self) -> bool:
        """Whether the caller may try to connect now; it tells how that went, or that it did not try."""
        if self.is_open:
            return True
        if self._is_trying or time.monotonic() < self._opens_at:
            return False
        self._is_trying = True
        return True

    def seconds_left(self) -> float:
        """Until the next attempt may be made."""
        return 0.0 if self.is_open else max(self._opens_at - time.monotonic(), 0.0)

    def leave(self) -> None:
        """An attempt has ended, or was not made."""
        self._is_trying = False

    def open(self) -> None:
        """An attempt has succeeded."""
        self.failures = 0
        self._is_trying = False
        self._pause = 0.0

    def close(self) -> None:
        """An attempt has failed; the next one may follow at once."""
        self.failures += 1

    def close_for_a_while(self, longest: float = LONGEST_PAUSE, first: float = FIRST_PAUSE) -> None:
        """The server is full: the next attempt follows after a pause, which grows with each refusal."""
        self.close()
        self._pause = min(max(2 * self._pause, first), longest)
        self._opens_at = time.monotonic() + self._pause * random.uniform(JITTER, 1)
