"""Slots that an interrupt has lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from typing import Generic

from .slots import LOST_AFTER, SlotQueue
from .waiters import S


class LostSlots(Generic[S]):
    """Finds the slots of a queue that an interrupt has lost: a signal's handler may raise between any two steps.

    A lost slot is in no deque, and nobody has it. A slot that changes hands may seem so for a moment. So there is a second
    look, which finds it unused since.
    """

    def __init__(self, queue: SlotQueue[S]) -> None:
        self._queue = queue
        #: The slots that were missed at the last look, with a mark of their last use, by the time when that was first seen.
        self._missed: dict[tuple[S, object], float] = {}

    def find(
        self,
        is_in_use: Callable[[S], bool],
        mark_of: Callable[[S], object],
        in_transit: Sized,
    ) -> list[S]:
        """Find the lost slots.

        :param is_in_use: tells of a slot if somebody has its connection
        :param mark_of: gives a value that changes with each use of a slot's connection
        :param in_transit: not empty while any thread has a slot of which neither the queue nor ``is_in_use`` tells
        """
        with self._queue.lock:
            found = self._find(is_in_use, mark_of)
            if not found or in_transit:
                return []
            # (A thread that was in transit at the search has ended that since, and tells of its slot now.)
            still_missed = self._missed_now(is_in_use)
            return list(filter(still_missed.__contains__, found))

    def _missed_now(self, is_in_use: Callable[[S], bool]) -> set[S]:
        store = self._queue.store
        return {slot for slot in store.absent() if store.request_of(slot) is None and not is_in_use(slot)}

    def _find(self, is_in_use: Callable[[S], bool], mark_of: Callable[[S], object]) -> list[S]:
        queue, store = self._queue, self._queue.store
        store.make_up()  # ``replace()`` may have been interrupted
        missed = self._missed_now(is_in_use)
        now = time.monotonic()
        known, self._missed = self._missed, {}
        for slot in missed:
            key = slot, mark_of(slot)
            self._missed[key] = known.get(key, now)
        queue.has_missed = bool(self._missed)
        return [slot for (slot, _), since in self._missed.items() if now - since >= LOST_AFTER]
