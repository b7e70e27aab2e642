"""A QueuePool whose cap is a set of slots, and whose waiters are served in the order in which they came.

SQLAlchemy's own QueuePool counts connections up and down; a connection that fails to open frees its count without
waking anyone, overflow connections are closed at every checkin, and a thread that has just arrived may overtake one that
waits. Here a *slot* is SQLAlchemy's connection record: with a connection it is idle, without one it is empty, and there are
never more of them than the cap. A slot that comes back goes to the thread that has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sqlalchemy.pool.base import Pool, _ConnectionRecord

#: Seconds between two looks for connections that have been idle for too long.
_TRIM_INTERVAL = 1.0


#: Seconds between two looks, by a thread that waits, for connections that nobody will give back.
_RECLAIM_INTERVAL = 1.0


class TooManyWaiting(Exception):
    """``max_waiting`` threads wait for a connection already."""


class SlotTimeout(Exception):
    """No slot came free in time."""


class _Waiter:
    """A thread's place in the line; ``slot`` is set just before ``served`` is released."""

    __slots__ = ("served", "slot")

    def __init__(self) -> None:
        self.slot: _ConnectionRecord | None = None
        self.served = threading.Lock()
        self.served.acquire()


class SlotPool(Pool):
    """What ``QueuePool`` names in the settings.

    At most ``pool_size + max_overflow`` connections are open; what has been idle for ``idle_timeout`` seconds is
    closed, down to ``min_idle``. ``max_overflow`` -1, or ``pool_size`` 0, is no limit.
    """

    # Slots change hands in plain deque operations, each atomic, and every step copes with having been overtaken: the
    # garbage collector may return a slot (SQLAlchemy's finalizer of a checkout that nobody gave back) in the middle of
    # any method here, in the thread that holds the lock. For the same reason the lock is re-entrant.

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float = 30.0,
        use_lifo: bool = True,
        max_waiting: int | None = None,
        idle_timeout: float = 600,
        min_idle: int = 0,
        **kw: Any,
    ) -> None:
        Pool.__init__(self, creator, **kw)
        self.pool_size = pool_size
        self.max_overflow = max_overflow
        self.cap = None if pool_size == 0 or max_overflow == -1 else pool_size + max_overflow
        self.use_lifo = use_lifo
        self.max_waiting = max_waiting
        self.idle_timeout = idle_timeout
        self.min_idle = min_idle
        self._timeout = timeout
        self.lock = threading.RLock()
        self._idle: deque[tuple[_ConnectionRecord, float]] = deque()
        self._empty = deque(self._new_slot() for _ in range(self.cap or 0))
        self._waiters: deque[_Waiter] = deque()
        self._next_trim = 0.0
        #: Asked, outside the lock, whether an idle connection may be lent; where not, its slot gets a new one.
        self.is_fit: Callable[[Any], bool] = lambda _connection: True
        #: Called, outside the lock, with each connection that comes back, and its record.
        self.on_return: Callable[[Any, Any], None] = lambda _connection, _record: None
        #: Called, outside the lock, by a thread that would have to wait: now, and every second of its wait.
        self.reclaim: Callable[[], None] = lambda: None

    def _new_slot(self) -> _ConnectionRecord:
        return _ConnectionRecord(self, connect=False)

    # Every decision about slots is made in the two methods below, under the lock.

    def _take(self) -> _ConnectionRecord | None:
        """A slot for whoever is first in line: an idle connection before an empty slot."""
        try:
            return (self._idle.pop() if self.use_lifo else self._idle.popleft())[0]
        except IndexError:
            pass
        try:
            return self._empty.pop()
        except IndexError:
            return self._new_slot() if self.cap is None else None

    def _serve(self) -> None:
        """Hand slots to waiters for as long as there are both."""
        while self._waiters:
            slot = self._take()
            if slot is None:
                return
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                self._put(slot)
                return
            waiter.slot = slot
            waiter.served.release()

    def _put(self, slot: _ConnectionRecord) -> None:
        if slot.dbapi_connection is not None:
            self._idle.append((slot, time.monotonic()))
        elif self.cap is not None:
            self._empty.append(slot)

    # SQLAlchemy calls these two; whatever it then does with the connection happens outside the lock.

    def _do_get(self) -> _ConnectionRecord:
        slot = self._get_slot()
        if slot.dbapi_connection is not None and not self._may_lend(slot):
            # Without a connection: SQLAlchemy opens one, in this slot.
            slot.close()
        return slot

    def _may_lend(self, slot: _ConnectionRecord) -> bool:
        try:
            return self.is_fit(slot.dbapi_connection)
        except BaseException:
            self._do_return_conn(slot)
            raise

    def _get_slot(self) -> _ConnectionRecord:
        slot = self._take_at_once()
        if slot is not None:
            return slot
        self.reclaim()
        with self.lock:
            if not self._waiters:
                slot = self._take()
                if slot is not None:
                    return slot
            if self.max_waiting is not None and len(self._waiters) >= self.max_waiting:
                raise TooManyWaiting
            waiter = _Waiter()
            self._waiters.append(waiter)
            self._serve()
        return self._wait(waiter)

    def _take_at_once(self) -> _ConnectionRecord | None:
        with self.lock:
            return None if self._waiters else self._take()

    def _do_return_conn(self, record: Any) -> None:
        if record.dbapi_connection is not None:
            self.on_return(record.dbapi_connection, record)
        with self.lock:
            self._put(record)
            self._serve()

    def _wait(self, waiter: _Waiter) -> _ConnectionRecord:
        deadline = time.monotonic() + self._timeout
        try:
            served = False
            while not served:
                left = deadline - time.monotonic()
                served = waiter.served.acquire(timeout=max(min(left, _RECLAIM_INTERVAL), 0))
                if left <= _RECLAIM_INTERVAL:
                    break
                self.reclaim()
        except BaseException:
            # An interrupt, say: a slot that has arrived for this thread must not be lost with it.
            if not self._leave(waiter):
                self._do_return_conn(waiter.slot)
            raise
        if not served and self._leave(waiter):
            raise SlotTimeout
        assert waiter.slot is not None
        return waiter.slot

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the line; ``False`` where a slot arrived in the last moment."""
        with self.lock:
            try:
                self._waiters.remove(waiter)
            except ValueError:
                return False
        return True

    # Housekeeping

    def close_idle(self) -> None:
        """Close every idle connection; a slot is free only after its connection has been closed."""
        self._close_slots(self._idle_slots())

    def trim(self) -> None:
        """Close what has been idle for ``idle_timeout``, the longest idle first, down to ``min_idle``."""
        now = time.monotonic()
        if now < self._next_trim:
            return
        self._next_trim = now + _TRIM_INTERVAL
        horizon = now - self.idle_timeout
        overdue = []
        with self.lock:
            while len(self._idle) > self.min_idle and self._idle[0][1] <= horizon:
                overdue.append(self._idle.popleft()[0])
        self._close_slots(overdue)

    def _idle_slots(self) -> list[_ConnectionRecord]:
        with self.lock:
            slots = []
            while self._idle:
                slots.append(self._idle.pop()[0])
            return slots

    def _close_slots(self, slots: list[_ConnectionRecord]) -> None:
        for slot in slots:
            try:
                slot.close()
            finally:
                self._do_return_conn(slot)

    # What SQLAlchemy's QueuePool tells about itself

    def dispose(self) -> None:
        self.close_idle()

    def size(self) -> int:
        return self.pool_size

    def checkedin(self) -> int:
        return len(self._idle)

    def waiting(self) -> int:
        """How many threads wait for a connection now."""
        return len(self._waiters)

    def status(self) -> str:
        return f"SlotPool cap: {self.cap} idle: {self.checkedin()} waiting: {self.waiting()}"
