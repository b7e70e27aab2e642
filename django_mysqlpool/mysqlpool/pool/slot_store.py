"""The slots of a pool: which are idle, which are empty, and which are out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Generic
from weakref import ref

from .backoff import Backoff
from .waiters import S, SlotRequest


class SlotStore(Generic[S]):
    """The slots of a queue. Its methods are called under the queue's lock, if they do not say otherwise.

    :param make_slot: makes an empty slot
    :param cap: the number of slots; ``None``: no limit
    :param backoff: allows attempts to connect
    :param lifo: take the slot that was put back last, else the one that was put back first
    """

    def __init__(self, make_slot: Callable[[], S], cap: int | None, backoff: Backoff, *, lifo: bool) -> None:
        self.cap = cap
        self.lifo = lifo
        self._backoff = backoff
        self._make_slot = make_slot
        #: Slots with a connection, and the time of their release (``time.monotonic()``), the longest idle one first.
        self.idle: deque[tuple[S, float]] = deque()
        self._empty: deque[S] = deque(make_slot() for _ in range(cap or 0))
        #: All slots: an unlimited store drops them when they are empty.
        self._all = set(self._empty)
        #: The request that each slot was taken for last.
        self.taken_for: dict[S, ref[SlotRequest]] = {}

    def __repr__(self) -> str:
        empty = len(self._empty) if self.cap is not None else "any number of"
        return f"<SlotStore {len(self.idle)} idle, {empty} empty>"

    @property
    def number(self) -> int:
        """How many slots can be taken."""
        return len(self.idle) + len(self._empty)

    @property
    def surplus(self) -> int:
        """How many slots have to go: the cap has been lowered. May be asked without the lock."""
        cap = self.cap
        return 0 if cap is None else max(len(self._all) - cap, 0)

    # Requests

    def request_of(self, slot: S) -> SlotRequest | None:
        """The request that a slot was taken for last, if its thread still has it."""
        taken_for = self.taken_for.get(slot)
        request = None if taken_for is None else taken_for()
        return None if request is None or request.is_finished or request.is_waiting else request

    def in_maintenance(self) -> int:
        """How many slots are out of the queue though nobody uses them."""
        requests = (taken_for() for taken_for in self.taken_for.values())
        return sum(request is not None and request.is_maintenance and not request.is_finished for request in requests)

    # Take and put

    def take_idle(self) -> S | None:
        """Take an idle slot; atomic without the lock."""
        try:
            return (self.idle.pop() if self.lifo else self.idle.popleft())[0]
        except IndexError:
            return None

    def take(self, request: SlotRequest) -> S | None:
        """A slot for the first in the queue: an idle one before an empty one."""
        slot = self.take_idle()
        if slot is None:
            return self.take_empty(request)
        self.taken_for[slot] = ref(request)
        return slot

    def take_empty(self, request: SlotRequest) -> S | None:
        """Take an empty slot if the back-off allows an attempt to connect."""
        backoff = self._backoff
        if backoff.failures and not backoff.allows_attempt:
            return None
        if self.cap is None:
            slot = self._make_slot()
            self._all.add(slot)
        else:
            try:
                slot = self._empty.pop()
            except IndexError:
                return None
        self.taken_for[slot] = ref(request)
        if backoff.failures:
            backoff.start_attempt(slot)
        return slot

    def put(self, slot: S) -> None:
        """Put a slot where it belongs."""
        if slot.dbapi_connection is not None:
            self.idle.append((slot, time.monotonic()))
            return
        self._backoff.end_attempt(slot)
        if self.cap is None or len(self._all) > self.cap:
            self._drop(slot)
        elif slot in self._all:  # else it was lost, and has been replaced
            self._empty.append(slot)

    def _drop(self, slot: S) -> None:
        """Have a slot less."""
        self.taken_for.pop(slot, None)
        self._all.discard(slot)

    def remove_idle(self, item: tuple[S, float], request: SlotRequest) -> bool:
        """Take an idle slot out, as ``idle_slots()`` gave it; ``False`` if it has been taken meanwhile."""
        try:
            self.idle.remove(item)
        except (ValueError, IndexError):  # IndexError: other threads changed the deque during the search
            return False
        self.taken_for[item[0]] = ref(request)
        return True

    # All of them

    def idle_slots(self) -> list[tuple[S, float]]:
        """The idle slots, the longest idle first, each with the time of its release."""
        return list(self.idle.copy())

    def absent(self) -> set[S]:
        """The slots that are not in the queue."""
        return self._all.difference((slot for slot, _ in self.idle.copy()), self._empty)

    def replace(self, slot: S) -> None:
        """Have a new empty slot in the place of this one."""
        self.taken_for.pop(slot, None)
        self._backoff.end_attempt(slot)
        self._all.discard(slot)
        self.make_up()

    def resize(self, cap: int | None) -> None:
        """Change the cap. Of too many slots the empty ones go now, the others when their connections have been closed."""
        self.cap = cap
        while self._empty and (cap is None or len(self._all) > cap):
            self._drop(self._empty.pop())
        self.make_up()

    def make_up(self) -> None:
        """Make empty slots until there are as many as the cap allows."""
        while self.cap is not None and len(self._all) < self.cap:
            slot = self._make_slot()
            self._all.add(slot)
            self._empty.append(slot)
