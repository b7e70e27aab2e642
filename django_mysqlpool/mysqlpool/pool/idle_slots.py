"""Maintenance of the slots that nobody uses: idle ones, and lost ones."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sized
from typing import Any

from .lost_slots import LostSlots
from .slots import SlotQueue
from .states import CloseReason
from .waiters import SlotRequest


class IdleSlots:
    """Closes the connections of idle slots. Each slot is free again only after its connection has been closed.

    :param queue: the slots are SQLAlchemy's records
    :param note_end: is told of a connection why it is about to be closed
    """

    def __init__(self, queue: SlotQueue[Any], note_end: Callable[[Any, CloseReason], None]) -> None:
        self._queue = queue
        self._note_end = note_end
        self._lost = LostSlots(queue)

    def close_all(self, reason: CloseReason) -> None:
        """Close every idle connection."""
        self._close((item, reason) for item in self._queue.store.idle_slots())

    def trim(self, idle_timeout: float, min_idle: int, reason: CloseReason) -> None:
        """Close what has been idle for ``idle_timeout`` seconds, the longest idle first, down to ``min_idle``."""
        horizon = time.monotonic() - idle_timeout
        items = self._queue.store.idle_slots()
        surplus = max(len(items) - min_idle, 0)
        self._close((item, reason) for item in items[:surplus] if item[1] <= horizon)

    def close_unfit(self, reason_to_close: Callable[[Any], CloseReason | None]) -> Counter[str]:
        """Close the idle connections that there is a reason to close.

        :returns: how many they were, by the reason
        """
        # (A connection that is handed out meanwhile may be closed at any moment.)
        return self._close(
            (item, reason)
            for item in self._queue.store.idle_slots()
            if (connection := item[0].dbapi_connection) is not None and (reason := reason_to_close(connection)) is not None
        )

    def _close(self, items: Iterable[tuple[tuple[Any, float], CloseReason]]) -> Counter[str]:
        closing = SlotRequest(is_maintenance=True)
        taken = [(item[0], reason) for item, reason in items if self._queue.remove_idle(item, closing)]
        slots = deque(slot for slot, _ in taken)
        try:
            for slot, reason in taken:
                self._note_end(slot.dbapi_connection, reason)
                slot.close()
                self._queue.release(slots.popleft())
        finally:
            # After an interrupt: what is still to be closed is closed at its next checkout, or by the next maintenance.
            for slot in slots:
                self._queue.release(slot)
            closing.is_finished = True  # last: until then nobody is refused because of them
        return Counter(reason for _, reason in taken)

    def with_longest_idle(self, action: Callable[[Any], CloseReason | None]) -> None:
        """Call ``action`` with the longest idle connection, if nobody waits; close it if that returns a reason to."""
        items = self._queue.store.idle_slots()
        borrowing = SlotRequest(is_maintenance=True)
        if self._queue.waiting or not items or not self._queue.remove_idle(items[0], borrowing):
            return
        slot = items[0][0]
        reason: CloseReason | None = "interrupted"
        try:
            reason = action(slot.dbapi_connection)
        finally:
            try:
                if reason is None:
                    self._queue.put_back_first(items[0])
                else:
                    self._close_and_release(slot, reason)
            finally:
                borrowing.is_finished = True  # last: until then nobody is refused because of it

    def _close_and_release(self, slot: Any, reason: CloseReason) -> None:
        try:
            self._note_end(slot.dbapi_connection, reason)
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
