"""Advice about the size of a pool, from its own figures."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

#: Nothing is said about fewer checkouts.
ENOUGH_CHECKOUTS = 100
#: The part of the checkouts that may wait.
TOLERABLE_WAITS = 0.01
#: The part of the cap that may be in use on average: near the whole of it each burst has to wait.
TOLERABLE_UTILISATION = 0.8
#: A cap that is so many times what is needed, and so many connections more, takes them from other processes.
TOO_LARGE, TOO_MANY = 2, 5


@dataclass(frozen=True)
class Period:
    """The counts of some minutes."""

    seconds: float
    checkouts: int
    #: Those that had to wait, and those that ended with an error.
    waits: int
    failures: int
    #: For how many seconds connections were out, all together.
    use_seconds: float

    @property
    def in_use(self) -> float:
        """The connections that were in use on average: how many were checked out a second, times how long each was out.

        That is Little's law. (J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9, 1961.)
        """
        return self.use_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def needed(self) -> int:
        """The connections with which few checkouts wait: the average, and twice its square root for bursts.

        (The square-root rule: S. Halfin, W. Whitt, "Heavy-Traffic Limits for Queues with Many Exponential Servers",
        Operations Research 29, 1981.)
        """
        return max(ceil(self.in_use + 2 * sqrt(self.in_use)), 1)


def advice(period: Period, cap: int | None) -> list[str]:
    """Say what is wrong with a pool's size; nothing, if all is well or too little has happened to tell."""
    if cap is None or (period.checkouts < ENOUGH_CHECKOUTS and not period.failures):
        return []
    use = (
        f"{period.in_use:.1f} of {cap} connections were in use on average in the last {period.seconds / 60:.0f} min "
        f"({period.checkouts / max(period.seconds, 1e-9):.1f} checkouts a second)"
    )
    at_least = f"pool_size and max_overflow to {period.needed} in all"
    if period.failures or period.waits > TOLERABLE_WAITS * period.checkouts:
        trouble = f"{period.waits} of {period.checkouts} checkouts had to wait, {period.failures} in vain; {use}."
        if period.needed > cap:
            return [f"{trouble} Raise {at_least}, or hold connections for less time."]
        cause = "On average that is enough: the checkouts come in bursts, or a few hold connections for long."
        return [f"{trouble} {cause} Look at the longest holders (leak_after tells of them), or raise max_overflow."]
    if period.in_use > TOLERABLE_UTILISATION * cap:
        return [f"{use}: a little more traffic will have to wait. Raise {at_least}."]
    if cap > max(TOO_LARGE * period.needed, period.needed + TOO_MANY):
        return [f"{use}. You may lower {at_least}, and leave the server to others."]
    return []
