"""The history of a session: its origin, and its statements."""

from __future__ import annotations

from typing import NamedTuple
from weakref import ref

from django_mysqlpool.mysqlpool.statements import SessionEffect

from .waiters import SlotRequest


class Origin(NamedTuple):
    """When and for whom a connection was opened, and how much of the longest life it has."""

    #: ``time.monotonic()``
    created_at: float
    #: A part of the longest life.
    jitter: float
    request: ref[SlotRequest]


class History:
    """The history of a session's statements."""

    __slots__ = ("dirtied_by", "is_opaque", "last_id_of", "sequence", "set_up_effect")

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
