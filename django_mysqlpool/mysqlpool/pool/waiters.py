"""A thread's request for a slot, and its place in the queue."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Slot(Protocol):
    """A slot, as far as the queue must know it."""

    #: The driver's connection; ``None``: the slot is empty.
    dbapi_connection: Any


S = TypeVar("S", bound=Slot)


class QueueFull(Exception):
    """``max_waiting`` threads wait already."""


class SlotTimeout(Exception):
    """No slot came free before the deadline."""


@dataclass(eq=False)
class SlotRequest:
    """A thread's request for a slot."""

    #: ``time.monotonic()``
    deadline: float = math.inf
    #: The thread only looks after the connection. Others wait a little for the slot.
    is_maintenance: bool = field(default=False, kw_only=True)
    #: The thread has no slot any more.
    is_finished: bool = field(default=False, init=False)
    #: The thread was first in the queue, and the server refused it: it is first again.
    is_first: bool = field(default=False, init=False)
    #: The thread was in the queue, and no slot was free.
    has_waited: bool = field(default=False, init=False)
    #: An empty slot is requested, now or not at all.
    needs_new: bool = field(default=False, init=False)
    #: The thread has no slot yet. (One that another thread took for it is lost if an interrupt comes before the handover.)
    is_waiting: bool = field(default=False, init=False)


class Waiter(Generic[S]):
    """A queued thread. It is woken when ``slot`` or ``error`` is set, or to claim a slot itself."""

    __slots__ = ("_bell", "enqueued_at", "error", "is_woken", "request", "slot")

    def __init__(self, request: SlotRequest) -> None:
        self.request = request
        #: ``time.monotonic()``
        self.enqueued_at = time.monotonic()
        self.slot: S | None = None
        self.error: Exception | None = None
        #: It has been woken, and has not claimed yet.
        self.is_woken = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def wake(self) -> None:
        """Wake the thread; under the queue's lock."""
        if not self.is_woken:
            self.is_woken = True
            self._bell.release()

    def sleep(self, seconds: float) -> bool:
        """Sleep until woken.

        :returns: ``False`` if nobody woke it within ``seconds``
        """
        return self._bell.acquire(timeout=seconds)

    @property
    def is_served(self) -> bool:
        return self.slot is not None or self.error is not None
