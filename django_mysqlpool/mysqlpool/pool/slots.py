"""The queue of a pool: its slots, the threads that wait for one, and when an empty slot may be filled.

A *slot* is the permission to have one connection open. A slot with a connection is idle while it is in the queue; a slot
without one is empty. There are as many slots as the cap allows. The queue decides which thread gets which slot. The thread
that has a slot opens, checks and closes its connection, outside the lock.

A slot that is released goes to the thread that has waited longest. Under a *fairness window* a running thread may take it
first (*barging*): to wake a sleeping thread takes longer than a short statement.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic
from weakref import ref

from django_mysqlpool.mysqlpool.errors import copy_of

from .backoff import Backoff
from .locks import RLock
from .slot_store import SlotStore
from .waiters import QueueFull, S, SlotRequest, SlotTimeout, Waiter

#: Seconds that a thread waits, though its deadline has passed, for slots that maintenance has: they are not in use.
MAINTENANCE_GRACE = 1.0
#: Seconds between two checks, by a waiter, for slots of which nobody would tell it.
CHECK_INTERVAL = 1.0
#: Seconds that a slot must have been in nobody's hands to be taken for lost. To hand one over takes microseconds.
LOST_AFTER = 0.25


class SlotQueue(Generic[S]):
    """The slots of a pool and the threads that wait for one.

    Slots change hands in plain deque operations, each of them atomic, and every step copes with having been overtaken: the
    garbage collector may release a slot (by SQLAlchemy's finalizer of a checkout that was dropped) in the middle of any
    method, in the thread that holds the lock. The lock is re-entrant for the same reason.

    :param make_slot: makes an empty slot
    :param cap: the number of slots; ``None``: no limit
    :param lifo: hand out the slot that was released last, else the one that was released first
    :param max_waiting: how many threads may wait; ``None``: no limit
    """

    def __init__(
        self, make_slot: Callable[[], S], cap: int | None, *, lifo: bool = True, max_waiting: int | None = None
    ) -> None:
        self.max_waiting = max_waiting
        self.lock = RLock()
        self.backoff = Backoff()
        self.store = SlotStore(make_slot, cap, self.backoff, lifo=lifo)
        #: Seconds for which running threads may barge past the first waiter; 0: never.
        self.fairness_window = 0.0
        #: Called outside the lock by each waiter, every ``CHECK_INTERVAL``: it may find slots that nobody will release.
        self.while_waiting: Callable[[], None] = lambda: None
        self._waiters: deque[Waiter[S]] = deque()
        #: Slots are missed, and may turn out to be lost: waiters check for that more often.
        self.has_missed = False

    def __repr__(self) -> str:
        return f"<SlotQueue {self.store!r}, {self.waiting} waiting, {self.backoff!r}>"

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    # Acquire

    def acquire_idle(self) -> S | None:
        """Acquire an idle slot if there is one, and no waiter that goes first."""
        # Without the lock: a thread that enqueues from now on has come later. It checks the idle slots again.
        if not self._waiters:
            try:
                return (self.store.idle.pop() if self.store.lifo else self.store.idle.popleft())[0]
            except IndexError:
                return None
        with self.lock:
            return self.store.take_idle() if not self._waiters or self._may_barge() else None

    def acquire(self, request: SlotRequest) -> S:
        """Acquire a slot: idle, or empty if the back-off allows an attempt to connect; wait for one if need be.

        :raises SlotTimeout: if none came free before the request's deadline, or at once if it ``needs_new``
        :raises QueueFull: if ``max_waiting`` threads wait already
        """
        with self.lock:
            request.is_waiting = False
            if not self._waiters or request.is_first:
                slot = self.store.take_empty(request) if request.needs_new else self.store.take(request)
                if slot is not None:
                    return slot
            if request.needs_new:
                raise SlotTimeout
            if self.store.in_maintenance():
                request.deadline = max(request.deadline, time.monotonic() + MAINTENANCE_GRACE)
            waiter = self._enqueue(request)
            # A slot may have been released before the waiter was in the queue. (Whoever releases one looks for waiters
            # afterwards, so either they see the waiter or we see their slot.)
            self._serve()
            request.has_waited = request.has_waited or not waiter.is_served
        return self._wait(waiter)

    def _enqueue(self, request: SlotRequest) -> Waiter[S]:
        waiter: Waiter[S] = Waiter(request)
        request.is_waiting = True
        if request.is_first:
            self._waiters.appendleft(waiter)
            return waiter
        if self.max_waiting is not None and len(self._waiters) >= self.max_waiting + self.store.in_maintenance():
            raise QueueFull(self.max_waiting)
        self._waiters.append(waiter)
        return waiter

    def _wait(self, waiter: Waiter[S]) -> S:
        try:
            self._sleep(waiter)
        except BaseException:
            # An interrupt, say: a slot that was handed to this thread must not be lost with it.
            if not self._dequeue(waiter) and waiter.slot is not None:
                self.release(waiter.slot)
            raise
        if not waiter.is_served and (self._dequeue(waiter) or not waiter.is_served):
            raise SlotTimeout
        if waiter.error is not None:
            raise waiter.error
        assert waiter.slot is not None
        return waiter.slot

    def _sleep(self, waiter: Waiter[S]) -> None:
        """Sleep until the waiter is served, or its deadline."""
        left = math.inf
        while left > 0 and not waiter.is_served:
            left = waiter.request.deadline - time.monotonic()
            interval = LOST_AFTER if self.has_missed else CHECK_INTERVAL
            if not self.backoff.is_closed:  # check when its pause ends
                interval = min(max(self.backoff.seconds_left(), 0.001), interval)
            if waiter.sleep(max(min(left, interval), 0)):
                self._claim(waiter)
            elif left > 0:
                self.while_waiting()
                self._check(waiter)

    def _check(self, waiter: Waiter[S]) -> None:
        """See to what nobody tells a waiter of: the end of the back-off's pause, and an interrupt of another thread.

        That may have come when the thread was about to serve this waiter, and had taken it out of the queue.
        """
        with self.lock:
            if not waiter.is_served and waiter not in self._waiters:
                self._waiters.appendleft(waiter)
            self._serve()

    def _claim(self, waiter: Waiter[S]) -> None:
        """A woken waiter takes a slot that no running thread has taken meanwhile."""
        with self.lock:
            waiter.is_woken = False
            slot = None if waiter.is_served else self.store.take(waiter.request)
            if slot is None:
                return
            try:
                self._waiters.remove(waiter)
            except ValueError:  # the garbage collector has released another slot just now, and it was handed to this waiter
                self.store.put(slot)
                self._notify()
            else:
                waiter.slot, waiter.request.is_waiting = slot, False

    def _dequeue(self, waiter: Waiter[S]) -> bool:
        """Leave the queue.

        :returns: ``False`` if a slot or an error was handed over in the last moment
        """
        with self.lock:
            try:
                self._waiters.remove(waiter)
            except ValueError:
                return False
            if waiter.is_woken:  # the slot that it was woken for goes to the next one
                self._notify()
        return True

    # Release

    def release(self, slot: S) -> None:
        """Release a slot."""
        if slot.dbapi_connection is None:
            with self.lock:
                self.store.put(slot)
        else:
            self.store.idle.append((slot, time.monotonic()))
        # A thread that enqueues checks the idle slots again afterwards, so either it sees this slot or we see it.
        if self._waiters:
            with self.lock:
                self._notify()

    # Decisions, under the lock

    def _notify(self) -> None:
        """Hand free slots to the waiters, or wake as many waiters to claim them, past whom running threads may barge."""
        if not self._may_barge():
            self._serve()
            return
        for waiter in tuple(itertools.islice(self._waiters, self.store.number)):
            waiter.wake()

    def _may_barge(self) -> bool:
        """True if the first waiter has waited for less than the fairness window."""
        return (
            self.fairness_window > 0
            and bool(self._waiters)
            and time.monotonic() - self._waiters[0].enqueued_at < self.fairness_window
        )

    def _serve(self) -> None:
        """Hand slots to waiters while there are both."""
        while self._waiters:
            try:
                slot = self.store.take(self._waiters[0].request)
            except IndexError:
                return
            if slot is None:
                return
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                self.store.put(slot)
                return
            # (It need not be the same one: the garbage collector may have served the first just now.)
            self.store.taken_for[slot] = ref(waiter.request)
            waiter.slot, waiter.request.is_waiting = slot, False
            waiter.wake()

    # Results of attempts to connect

    def connect_succeeded(self) -> None:
        """A connection is open: waiters may connect too."""
        if self.backoff.is_closed:
            return
        with self.lock:
            self.backoff.succeeded()
            self._serve()

    def connect_failed(self, error: Exception, min_wait: float) -> None:
        """A connection could not be opened.

        From now on attempts are made one at a time. Each may take long, so waiters must not make them in turn.

        :param min_wait: the waiters that have waited for so many seconds raise ``error`` too
        """
        horizon = time.monotonic() - min_wait
        with self.lock:
            self.backoff.failed()
            self._fail_waiters(error, horizon)

    def _fail_waiters(self, error: Exception, horizon: float) -> None:
        """Have the waiters that came before ``horizon`` raise ``error``; under the lock."""
        for waiter in tuple(self._waiters):
            if waiter.enqueued_at > horizon:
                continue
            copied = copy_of(error)  # an interrupt may come in code of a user's class
            if self._dequeue(waiter):
                # Under the lock, so that a waiter whose time is over at this moment finds it.
                waiter.error = copied
                waiter.wake()

    def connect_refused(self, **pause: float) -> None:
        """The server is full: the next attempt is made after a pause; ``pause`` is ``Backoff.refused()``'s."""
        with self.lock:
            self.backoff.refused(**pause)

    # Maintenance

    def remove_idle(self, item: tuple[S, float], request: SlotRequest) -> bool:
        """Take an idle slot out, as ``store.idle_slots()`` gave it; ``False`` if it has been taken meanwhile."""
        with self.lock:
            return self.store.remove_idle(item, request)

    def put_back_first(self, item: tuple[S, float]) -> None:
        """Put an idle slot back in its place as the longest idle one."""
        with self.lock:
            self.store.idle.appendleft(item)
            self._serve()

    def resize(self, cap: int | None) -> None:
        """Change the number of slots; ``None``: no limit."""
        with self.lock:
            self.store.resize(cap)
            self._serve()

    def replace(self, slot: S) -> None:
        """Have a new empty slot in the place of this one."""
        with self.lock:
            self.store.replace(slot)
            self._serve()
