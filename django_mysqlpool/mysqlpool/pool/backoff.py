"""When a pool may open a connection: at any time, or, after a failed attempt, one at a time and after a pause."""

from __future__ import annotations

import random
import time
from enum import Enum

#: Seconds between two attempts while the server is full: the first pause, and the longest. Each is up to twice the last.
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.25
#: The shortest part of a pause: processes that were refused together do not come back together.
JITTER = 0.5


class BackoffState(Enum):
    """The states of a circuit breaker."""

    #: Attempts are allowed without limit.
    CLOSED = "closed"
    #: No attempt is allowed until the pause ends.
    OPEN = "open"
    #: One attempt at a time is allowed. Its success closes the circuit.
    HALF_OPEN = "half-open"


class Backoff:
    """Keeps a crowd from a server that has just refused a connection, or that is down.

    A failure makes it half-open, a refusal opens it for a pause, and a success closes it. Its methods are called under the
    lock of its queue.
    """

    def __init__(self) -> None:
        #: Attempts that have failed since the last success.
        self.failures = 0
        self._attempt: object = None
        self._pause = 0.0
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"<Backoff {self.state.value}, {self.failures} failures>"

    @property
    def state(self) -> BackoffState:
        if not self.failures:
            return BackoffState.CLOSED
        return BackoffState.OPEN if self.seconds_left() > 0 else BackoffState.HALF_OPEN

    @property
    def is_closed(self) -> bool:
        """All may attempt to connect."""
        return not self.failures

    @property
    def allows_attempt(self) -> bool:
        return not self.failures or (self._attempt is None and time.monotonic() >= self._retry_at)

    def seconds_left(self) -> float:
        """Seconds until the pause ends."""
        return max(self._retry_at - time.monotonic(), 0.0) if self.failures else 0.0

    def start_attempt(self, attempt: object) -> None:
        """Count an attempt that is about to be made; ``end_attempt()`` must follow."""
        if self.failures:
            self._attempt = attempt

    def end_attempt(self, attempt: object) -> None:
        """Allow the next attempt: this one has ended, or was not made."""
        if self._attempt is attempt:
            self._attempt = None

    def succeeded(self) -> None:
        self.failures = 0
        self._attempt = None
        self._pause = 0.0

    def failed(self) -> None:
        """Allow one attempt at a time; the next may follow at once."""
        self.failures += 1

    def refused(self, longest: float = LONGEST_PAUSE, first: float = FIRST_PAUSE) -> None:
        """Allow the next attempt after a pause, which grows with each refusal.

        :param longest: the longest pause, in seconds
        :param first: the first pause, in seconds
        """
        self.failed()
        self._pause = min(max(2 * self._pause, first), longest)
        self._retry_at = time.monotonic() + self._pause * random.uniform(JITTER, 1)
