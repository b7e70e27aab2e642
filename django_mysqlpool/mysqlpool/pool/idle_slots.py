"""Maintenance of the slots that nobody uses: idle ones, and lost ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sized
from typing import Any

from .lost_slots import LostSlots
from .slots import SlotQueue
from .waiters import SlotRequest


class IdleSlots:
    """Closes the connections of idle slots. Each slot is free again only after its connection has been closed.

    :param queue: the slots are SQLAlchemy's records
    """

    def __init__(self, queue: SlotQueue[Any]) -> None:
        self._queue = queue
        self._lost = LostSlots(queue)

    def close_all(self) -> None:
        """Close every idle connection."""
        self._close(self._queue.store.idle_slots())

    def trim(self, idle_timeout: float, min_idle: int) -> None:
        """Close what has been idle for ``idle_timeout`` seconds, the longest idle first, down to ``min_idle``."""
        horizon = time.monotonic() - idle_timeout
        items = self._queue.store.idle_slots()
        surplus = max(len(items) - min_idle, 0)
        self._close(item for item in items[:surplus] if item[1] <= horizon)

    def close_unfit(self, is_unfit: Callable[[Any], bool]) -> int:
        """Close the idle connections that are unfit.

        :returns: how many they were
        """
        # (A connection that is handed out meanwhile may be closed at any moment.)
        return self._close(
            item
            for item in self._queue.store.idle_slots()
            if (connection := item[0].dbapi_connection) is not None and is_unfit(connection)
        )

    def _close(self, items: Iterable[tuple[Any, float]]) -> int:
        closing = SlotRequest(is_maintenance=True)
        slots = deque(item[0] for item in items if self._queue.remove_idle(item, closing))
        number = len(slots)
        try:
            for slot in tuple(slots):
                slot.close()
                self._queue.release(slots.popleft())
        finally:
            # After an interrupt: what is still to be closed is closed at its next checkout, or by the next maintenance.
            for slot in slots:
                self._queue.release(slot)
            closing.is_finished = True  # last: until then nobody is refused because of them
        return number

    def with_longest_idle(self, action: Callable[[Any], bool]) -> None:
        """Call ``action`` with the longest idle connection, if nobody waits; close it if that returns ``False``."""
        items = self._queue.store.idle_slots()
        borrowing = SlotRequest(is_maintenance=True)
        if self._queue.waiting or not items or not self._queue.remove_idle(items[0], borrowing):
            return
        slot = items[0][0]
        keep = False
        try:
            keep = action(slot.dbapi_connection)
        finally:
            try:
                if keep:
                    self._queue.put_back_first(items[0])
                else:
                    self._close_and_release(slot)
            finally:
                borrowing.is_finished = True  # last: until then nobody is refused because of it

    def _close_and_release(self, slot: Any) -> None:
        try:
            slot.close()
        finally:
            self._queue.release(slot)

    def replace_lost(
        self,
        is_out: Callable[[Any], bool],
        last_used: Callable[[Any], float],
        in_transit: Sized,
    ) -> None:
        """Close the connections of lost slots, and put new slots in their place.

        :param is_out: tells of a connection if somebody has it
        :param last_used: tells the time of a connection's last use
        :param in_transit: not empty while any thread has a slot of which neither the queue nor a lease tells
        """

        def is_in_use(slot: Any) -> bool:
            connection = slot.dbapi_connection
            return connection is not None and is_out(connection)

        def mark_of(slot: Any) -> float:
            connection = slot.dbapi_connection
            return 0.0 if connection is None else last_used(connection)

        for slot in self._lost.find(is_in_use, mark_of, in_transit):
            try:
                slot.close()
            finally:
                self._queue.replace(slot)
