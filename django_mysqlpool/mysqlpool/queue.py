"""A QueuePool whose cap is a set of slots, and whose waiters are served in the order in which they came.

SQLAlchemy's own QueuePool counts connections up and down; a connection that fails to open frees its count without
waking anyone, overflow connections are closed at every checkin, and a thread that has just arrived may overtake one that
waits. Here a *slot* is SQLAlchemy's connection record: with a connection it is idle, without one it is empty, and there are
never more of them than the cap. A slot that comes back goes to the thread that has waited longest, except where that may be
overtaken. Whether an empty one may be filled now, the pool's gate says.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sqlalchemy.pool.base import Pool, _ConnectionRecord

from .gate import Gate

#: Seconds between two looks, by a thread that waits, for what nobody would tell it.
_LOOK_INTERVAL = 1.0


class TooManyWaiting(Exception):
    """``max_waiting`` threads wait for a connection already."""


class SlotTimeout(Exception):
    """No slot came free in time."""


class Asking:
    """What a thread asks of the pool, and until when; ``deadline`` is ``time.monotonic()``."""

    __slots__ = ("deadline", "is_first", "only_new")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        #: It was first in line and the server refused it: it is first again.
        self.is_first = False
        #: It wants a new connection and no idle one, now or not at all.
        self.only_new = False


class Asks(threading.local):
    """The calling thread's ``Asking``."""

    now: Asking | None = None


class _Waiter:
    """A thread's place in the line, which is woken when ``slot`` or ``error`` has been set, or to look for itself."""

    __slots__ = ("_bell", "error", "is_woken", "since", "slot")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.slot: _ConnectionRecord | None = None
        self.error: Exception | None = None
        #: And has not looked yet.
        self.is_woken = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def wake(self) -> None:
        """Under the pool's lock."""
        if not self.is_woken:
            self.is_woken = True
            self._bell.release()

    def sleep(self, seconds: float) -> bool:
        """Whether it was woken."""
        return self._bell.acquire(timeout=seconds)

    @property
    def is_served(self) -> bool:
        """Whether it has what it was waiting for, or was told that there is none."""
        return self.slot is not None or self.error is not None


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
        self.gate = Gate()
        #: The slot that a closed gate has let through.
        self._attempt: _ConnectionRecord | None = None
        self.asks = Asks()
        #: Seconds for which a waiter may be overtaken by threads that have just come, and need not wait to be woken.
        self.overtaking = 0.0
        told = self.dispatch
        #: Somebody listens for what only SQLAlchemy's own proxies of connections tell: they are to be lent.
        self.lends_proxies = any((told.checkout, told.checkin, told.reset, self._should_log_debug()))
        #: Asked, outside the lock, whether an idle connection may be lent; where not, its slot gets a new one.
        self.is_fit: Callable[[Any], bool] = lambda _connection: True
        #: Called, outside the lock, by a thread that waits, every second.
        self.reclaim: Callable[[], None] = lambda: None

    def _new_slot(self) -> _ConnectionRecord:
        return _ConnectionRecord(self, connect=False)

    # Every decision about slots is made in the methods below, under the lock; only an idle one that nobody waits for goes
    # and comes without it.

    def _take_idle(self) -> _ConnectionRecord | None:
        try:
            return (self._idle.pop() if self.use_lifo else self._idle.popleft())[0]
        except IndexError:
            return None

    def _take(self) -> _ConnectionRecord | None:
        """A slot for whoever is first in line: an idle connection before an empty slot."""
        return self._take_idle() or self._take_empty()

    def _take_empty(self) -> _ConnectionRecord | None:
        if self.cap is not None and not self._empty:
            return None
        if not self.gate.admit():
            return None
        try:
            slot = self._empty.pop() if self.cap is not None else self._new_slot()
        except IndexError:
            self.gate.leave()
            return None
        if not self.gate.is_open:
            self._attempt = slot
        return slot

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
            waiter.wake()

    def _put(self, slot: _ConnectionRecord) -> None:
        if slot.dbapi_connection is not None:
            self._idle.append((slot, time.monotonic()))
            return
        if slot is self._attempt:
            self._attempt = None
            self.gate.leave()
        if self.cap is not None:
            self._empty.append(slot)

    def lend(self) -> _ConnectionRecord:
        """A slot with a connection, to be given to ``take_back()``; SQLAlchemy's ``connect()`` without its proxy."""
        slot = self._do_get()
        try:
            slot.get_connection()
        except BaseException:
            self.take_back(slot, is_fit=False)
            raise
        return slot

    def lend_idle(self) -> _ConnectionRecord | None:
        """The slot that is next, if its connection is idle and nobody waits who must not be overtaken."""
        if not self._waiters:  # who joins the line from now on has come later
            return self._take_idle()
        with self.lock:
            return self._take_idle() if not self._waiters or self._may_overtake() else None

    def take_back(self, slot: _ConnectionRecord, *, is_fit: bool = True) -> None:
        """Have a slot again; without its connection, closed, where that is not ``is_fit``."""
        try:
            if not is_fit:
                slot.invalidate()
        finally:
            if slot.dbapi_connection is None:
                with self.lock:
                    self._put(slot)
            else:
                self._put(slot)
            # Whoever joins the line looks once more for what is idle, after that; so one of the two sees the other.
            if self._waiters:
                with self.lock:
                    self._hand_on()

    def _hand_on(self) -> None:
        """Let the line have what is free: give it, or wake as many to look, who may be overtaken on their way."""
        if not self._may_overtake():
            self._serve()
            return
        for waiter in tuple(itertools.islice(self._waiters, len(self._idle) + len(self._empty))):
            waiter.wake()

    def _may_overtake(self) -> bool:
        """Whether the first in line has not waited for too long."""
        return self.overtaking > 0 and bool(self._waiters) and time.monotonic() - self._waiters[0].since < self.overtaking

    def _look_for(self, waiter: _Waiter) -> None:
        """A waiter that was woken takes what nobody else has taken meanwhile, unless it was given something."""
        with self.lock:
            waiter.is_woken = False
            slot = None if waiter.is_served else self._take()
            if slot is None:
                return
            try:
                self._waiters.remove(waiter)
            except ValueError:  # the garbage collector has returned another one, just now
                self._put(slot)
                self._hand_on()
            else:
                waiter.slot = slot

    # SQLAlchemy calls these two; whatever it then does with the connection happens outside the lock.

    def _do_get(self) -> _ConnectionRecord:
        slot = self._get_slot()
        try:
            if slot.dbapi_connection is not None and not self.is_fit(slot.dbapi_connection):
                # Without a connection: SQLAlchemy opens one, in this slot.
                slot.close()
        except BaseException:
            self._do_return_conn(slot)
            raise
        return slot

    def _get_slot(self) -> _ConnectionRecord:
        asking = self.asks.now or Asking(time.monotonic() + self._timeout)
        with self.lock:
            slot = self._take_at_once(asking)
            if slot is not None:
                return slot
            if asking.only_new:
                raise SlotTimeout
            waiter = self._join(asking.is_first)
            self._serve()  # the garbage collector may have returned a slot meanwhile
        return self._wait(waiter, asking.deadline)

    def _take_at_once(self, asking: Asking) -> _ConnectionRecord | None:
        if self._waiters and not asking.is_first:
            return None
        return self._take_empty() if asking.only_new else self._take()

    def _join(self, is_first: bool) -> _Waiter:
        """A place in the line."""
        waiter = _Waiter()
        if is_first:
            self._waiters.appendleft(waiter)
            return waiter
        if self.max_waiting is not None and len(self._waiters) >= self.max_waiting:
            raise TooManyWaiting
        self._waiters.append(waiter)
        return waiter

    def _do_return_conn(self, record: Any) -> None:
        self.take_back(record)

    def _wait(self, waiter: _Waiter, deadline: float) -> _ConnectionRecord:
        try:
            left = math.inf
            while left > 0 and not waiter.is_served:
                left = deadline - time.monotonic()
                if waiter.sleep(max(min(left, self._until_next_look()), 0)):
                    self._look_for(waiter)
                elif left > 0:
                    self._look()
        except BaseException:
            # An interrupt, say: a slot that has arrived for this thread must not be lost with it.
            if not self._leave(waiter) and waiter.slot is not None:
                self._do_return_conn(waiter.slot)
            raise
        if not waiter.is_served and self._leave(waiter):
            raise SlotTimeout
        if waiter.error is not None:
            raise waiter.error
        assert waiter.slot is not None
        return waiter.slot

    def _until_next_look(self) -> float:
        """Seconds; while the gate is closed, a waiter looks when it may open."""
        return _LOOK_INTERVAL if self.gate.is_open else min(max(self.gate.seconds_left(), 0.001), _LOOK_INTERVAL)

    def _look(self) -> None:
        """See to what a waiter is not told of: connections that nobody will give back, and the end of the gate's pause."""
        self.reclaim()
        with self.lock:
            self._serve()

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the line; ``False`` where a slot, or an error, arrived in the last moment."""
        with self.lock:
            try:
                self._waiters.remove(waiter)
            except ValueError:
                return False
            if waiter.is_woken:  # what it was woken for is the next one's
                self._hand_on()
        return True

    # What became of attempts to connect

    def connected(self) -> None:
        """A new connection is open: whoever waits may try too."""
        if self.gate.is_open:
            return
        with self.lock:
            self.gate.open()
            self._serve()

    def connect_failed(self, error: Exception, patience: float) -> None:
        """A connection could not be opened: those who have waited for ``patience`` seconds are told the same.

        Attempts are made one at a time now; where each takes as long as it may, the line must not wait for them in turn.
        """
        horizon = time.monotonic() - patience
        with self.lock:
            self.gate.close()
            for waiter in tuple(self._waiters):
                if waiter.since <= horizon and self._leave(waiter):
                    # Under the lock: one that gives up in this moment finds it.
                    waiter.error = type(error)(*error.args)
                    waiter.wake()

    def connect_refused(self, **pause: float) -> None:
        """The server is full: the next attempt is made after a pause; ``pause`` as ``Gate.close_for_a_while`` takes it."""
        with self.lock:
            self.gate.close_for_a_while(**pause)

    # Housekeeping

    def close_idle(self) -> None:
        """Close every idle connection; a slot is free only after its connection has been closed."""
        self._close_slots(self._idle_slots())

    def trim(self, idle_timeout: float, min_idle: int) -> None:
        """Close what has been idle for ``idle_timeout`` seconds, the longest idle first, down to ``min_idle``."""
        horizon = time.monotonic() - idle_timeout
        overdue = []
        for item in self._idle.copy():
            if item[1] > horizon or len(self._idle) <= min_idle:
                break
            if self._take_out(item):
                overdue.append(item[0])
        self._close_slots(overdue)

    def close_unfit(self, is_unfit: Callable[[Any], bool]) -> int:
        """Close the idle connections of which ``is_unfit`` says so; how many they were."""
        # (One that is lent meanwhile may lose its connection at any moment.)
        items = self._idle.copy()
        unfit = [item for item in items if (found := item[0].dbapi_connection) is not None and is_unfit(found)]
        slots = [item[0] for item in unfit if self._take_out(item)]
        self._close_slots(slots)
        return len(slots)

    def _take_out(self, item: tuple[_ConnectionRecord, float]) -> bool:
        """Take an idle slot out; ``False`` where it was lent meanwhile."""
        try:
            self._idle.remove(item)
        except (ValueError, IndexError):  # the latter where others changed the deque during the search
            return False
        return True

    def with_an_idle_one(self, action: Callable[[Any], bool]) -> None:
        """Call ``action`` with the connection that is idle longest, if nobody waits; close it where that says ``False``."""
        if self._waiters:
            return
        try:
            slot, since = self._idle.popleft()
        except IndexError:
            return
        is_fit = False
        try:
            is_fit = action(slot.dbapi_connection)
        finally:
            if not is_fit:
                self._close_slots([slot])
        if is_fit:
            with self.lock:
                self._idle.appendleft((slot, since))
                self._serve()

    def _idle_slots(self) -> list[_ConnectionRecord]:
        return list(iter(self._take_idle, None))

    def _close_slots(self, slots: list[_ConnectionRecord]) -> None:
        rest = deque(slots)
        try:
            while rest:
                rest[0].close()
                self._do_return_conn(rest.popleft())
        finally:
            # An interrupt: what is still to be closed is so at its next checkout, or in the housekeeper's next round.
            for slot in rest:
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
