"""The history of a session: its origin, its statements, its checkouts, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import ref

from django_mysqlpool.mysqlpool.statements import SessionEffect

from .states import CloseReason
from .waiters import SlotRequest

#: The upper bounds of a histogram's buckets, in seconds; the last bucket has no bound. (Of ``db.client.operation.duration``
#: in OpenTelemetry's semantic conventions for database clients.)
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


@dataclass(slots=True)
class Origin:
    """When and for whom a connection was opened, and how much of the longest life it has."""

    #: ``time.monotonic()``
    created_at: float
    #: A part of the longest life.
    jitter: float
    request: ref[SlotRequest]


class Usage:
    """The counts of a session's checkouts. Only the thread that has the connection changes them, so it takes no lock."""

    __slots__ = ("checkins", "checkouts", "use_counts", "use_sum", "warm_checkouts")

    def __init__(self) -> None:
        self.checkouts = 0
        self.checkins = 0
        #: Checkouts that found it ready, and waited for nothing.
        self.warm_checkouts = 0
        #: How many checkouts lasted for as long as each bucket says, and for how many seconds all of them.
        self.use_counts = [0] * (len(BOUNDS) + 1)
        self.use_sum = 0.0


class History:
    """The history of a session."""

    __slots__ = ("close_reason", "dirtied_by", "is_opaque", "last_id_of", "sequence", "set_up_effect", "usage")

    def __init__(self) -> None:
        #: The kind of the first statement that made the session dirty, or the name of the driver's method.
        self.dirtied_by: str | None = None
        #: Not all of what its borrower has done is known: stored code may have run.
        self.is_opaque = False
        #: The worst effect of what was set up since the connect or the last reset, less what Django does itself.
        self.set_up_effect = SessionEffect.CLEAN
        #: The sequence of the last statement, and of the one that may have set ``LAST_INSERT_ID()``, if ``release`` is
        #: "transaction".
        self.sequence: object = None
        self.last_id_of: object = None
        self.usage = Usage()
        self.close_reason: CloseReason | None = None

    def note_end(self, reason: CloseReason) -> None:
        """Note why the connection is about to be closed; the first reason holds."""
        self.close_reason = self.close_reason or reason
