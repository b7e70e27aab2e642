"""The states of a session, of a lease, and of what is known of a server."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal


class SessionState(IntEnum):
    """The states of a session, in the order of what it takes to hand it to the next borrower."""

    #: Connected or reset, and not yet set up by Django.
    NEW = 0
    #: Set up, and clean.
    READY = 1
    #: A reset clears what was done to it.
    DIRTY = 2
    #: Only its end clears what was done to it.
    UNSALVAGEABLE = 3
    #: Its connection is being closed, or has been.
    CLOSED = 4


class TakesWrites(IntEnum):
    """Knowledge about a session's server: if it takes writes."""

    #: Nothing else is known.
    EXPECTED = 0
    #: It must say so before the session is handed out again, if that needs a ping.
    IN_QUESTION = 1
    #: It does not. The session is handed out for want of a better one, and needs a ping each time.
    REFUSED = 2


class LeaseState(IntEnum):
    """The states of a lease."""

    #: Nothing is being done with the connection.
    IDLE = 0
    #: A cursor has been made and not yet used, or has rows that are still with the server.
    IN_USE = 1
    #: The connection has been returned; the lease's cursors are closed.
    RETURNED = 2


# (Plain numbers: to get and to compare members of an Enum class is slow.)
NEW, READY, DIRTY, UNSALVAGEABLE, CLOSED = map(int, SessionState)
EXPECTED, IN_QUESTION, REFUSED = map(int, TakesWrites)
IDLE, IN_USE, RETURNED = map(int, LeaseState)

#: Why a connection was closed.
CloseReason = Literal[
    "expired",  # it was as old as ``recycle``, or the server, allows
    "idle",  # nobody has used it for ``idle_timeout`` seconds
    "unwanted",  # no alias leads to its pool any more
    "yielded",  # another process may have its place on a server that is full
    "lost",  # the server has ended it, or did not answer
    "read_only",  # its server takes no writes, and others may
    "unsalvageable",  # it held something that no reset clears
    "reset_failed",  # it could not be reset or rolled back
    "discarded",  # ``discard_on_error`` said so, or it was closed inside an ``atomic()`` block
    "interrupted",  # nobody knows what it was in the middle of
    "abandoned",  # its holder has ended, or was dropped, without returning it
    "drained",  # by ``drain_pool()``
    "pool_closed",  # by ``close_pool()``
    "surplus",  # by ``resize_pool()``, or the pool class does not keep it
]
