"""The default pool: a SQLAlchemy pool whose connections are the slots of a queue.

SQLAlchemy's own QueuePool counts connections up and down. A connection that fails to open frees its count without waking
anyone, overflow connections are closed at every checkin, and a thread that has just arrived may overtake one that waits.
Here a slot is SQLAlchemy's record of a connection, and ``slots.py`` decides who gets which.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized
from typing import Any, Protocol

from sqlalchemy.pool import Pool

from . import sqlalchemy_names
from .idle_slots import IdleSlots
from .locks import RLock
from .slots import SlotQueue
from .states import CloseReason
from .waiters import SlotRequest


class ConnectionChecks(Protocol):
    """Answers what a pool of SQLAlchemy's asks about the connections in it."""

    def is_usable(self, connection: Any, request: Any) -> bool:
        """True if an idle connection may be handed out; it may ask the server."""

    def is_current(self, connection: Any) -> bool:
        """True if a connection was opened since the pool was last closed."""

    def is_out(self, connection: Any) -> bool:
        """True if somebody has a connection, or is closing it."""

    def last_used(self, connection: Any) -> float:
        """The time of a connection's last use."""


class ConnectionCloser(Protocol):
    """Closes the connections of a pool of SQLAlchemy's."""

    def close_connection(self, connection: Any) -> None:
        """Close a connection, and wait for the server to notice."""

    def close_at_once(self, connection: Any) -> None:
        """Close a connection without a wait for the server."""


class _Audience:
    """Who listens to a pool's checkouts and checkins: those events tell a listener of proxies, which are made only then."""

    __slots__ = ("_always_listens", "_dispatch", "_heard_by_all", "_unheard")

    def __init__(self, pool: Pool) -> None:
        self._dispatch = dispatch = pool.dispatch
        #: What stands for the events until somebody listens to those of this pool.
        self._unheard = dispatch.checkout, dispatch.checkin, dispatch.reset
        #: The listeners to those of all pools.
        self._heard_by_all = [event.parent_listeners for event in self._unheard]
        #: The arguments ``events`` and ``echo`` ask for proxies.
        self._always_listens = any(self._unheard) or sqlalchemy_names.logs_checkouts(pool)

    def is_there(self) -> bool:
        """True if anybody listens now."""
        dispatch, (checkout, checkin, reset) = self._dispatch, self._unheard
        checkouts_of_all, checkins_of_all, resets_of_all = self._heard_by_all
        return bool(
            dispatch.checkout is not checkout
            or dispatch.checkin is not checkin
            or dispatch.reset is not reset
            or checkouts_of_all
            or checkins_of_all
            or resets_of_all
            or self._always_listens
        )


class _Handover(threading.local):
    """The slot that the calling thread has acquired, and SQLAlchemy is about to ask for."""

    slot: Any = None


def _cap(pool_size: int, max_overflow: int) -> int | None:
    return None if pool_size == 0 or max_overflow == -1 else pool_size + max_overflow


def _note_end(connection: Any, reason: CloseReason) -> None:
    connection.mysqlpool_session.history.note_end(reason)


class SlotPool(Pool):
    """The class that ``QueuePool`` names in the settings.

    At most ``pool_size + max_overflow`` connections are open. A connection that has been idle for ``idle_timeout`` seconds
    is closed, down to ``min_idle``. ``max_overflow`` -1, or ``pool_size`` 0, is no limit.
    """

    #: What each checkout and checkin looks up. (SQLAlchemy has put the rest into a dict, where Python takes longer.)
    __slots__ = ("_audience", "is_resized", "queue")

    has_queue = True
    #: The logger of what SQLAlchemy says itself, in the middle of a checkout: not one below ours, which may be at DEBUG,
    #: with a handler that writes through the ORM.
    _sqla_logger_namespace = "sqlalchemy.pool.SlotPool"
    #: Why a connection was closed of which nobody has said that it would be.
    default_close_reason = "interrupted"

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
        #: ``pool_size`` and ``max_overflow``.
        self.sizes = pool_size, max_overflow
        #: Its cap has been changed.
        self.is_resized = False
        self.timeout = timeout
        self.idle_timeout = idle_timeout
        self.min_idle = min_idle
        self.queue: SlotQueue[Any] = SlotQueue(
            lambda: sqlalchemy_names.ConnectionRecord(self, connect=False),
            _cap(pool_size, max_overflow),
            lifo=use_lifo,
            max_waiting=max_waiting,
        )
        #: Held while slots change hands.
        self.lock = self.queue.lock
        self.idle_slots = IdleSlots(self.queue, _note_end)
        #: Tells the request for which a connection is opened in a record.
        self.request_of = self.queue.store.request_of
        self._handover = _Handover()
        self._checks: ConnectionChecks | None = None
        self._closer: ConnectionCloser | None = None
        self._audience = _Audience(self)

    def attach(self, checks: ConnectionChecks, closer: ConnectionCloser, reclaim: Callable[[], None]) -> None:
        """Have our pool look after the connections.

        :param reclaim: reclaims connections that nobody will release
        """
        self._checks = checks
        self._closer = closer
        self.queue.while_waiting = reclaim

    @property
    def cap(self) -> int | None:
        """The most connections that may be open at once; ``None``: no limit."""
        return self.queue.store.cap

    def renew_lock(self) -> Any:
        """In a forked child: take a new lock, for a thread of the parent's may have held the last one."""
        self.lock = self.queue.lock = RLock()
        return self.lock

    # Checkout and checkin

    def acquire_idle(self) -> Any:
        """Acquire a slot with an idle connection, if it can be had at once and nobody listens to SQLAlchemy's events."""
        return None if self._audience.is_there() else self.queue.acquire_idle()

    def acquire(self, request: SlotRequest) -> Any:
        """Acquire a usable connection; wait for it, or have it opened.

        :returns: its slot, or SQLAlchemy's proxy of it if somebody listens to what only proxies tell
        :raises SlotTimeout: if none came free before the request's deadline
        :raises QueueFull: if ``max_waiting`` threads wait already
        """
        slot = self.queue.acquire(request)
        try:
            connection = slot.dbapi_connection
            if connection is not None and self._checks is not None and not self._checks.is_usable(connection, request):
                slot.close()
        except BaseException:  # an interrupt, perhaps of a ping, whose answer is still to come
            self.release(slot, keep=False)
            raise
        if self._audience.is_there():
            return self._proxy_of(slot)
        try:
            slot.get_connection()
        except BaseException:
            self.release(slot, keep=False)
            raise
        return slot

    def _proxy_of(self, slot: Any) -> Any:
        outer, self._handover.slot = self._handover.slot, slot
        try:
            return self.connect()
        except BaseException:
            if self._handover.slot is slot:  # SQLAlchemy has not got it
                self.release(slot, keep=False)
            raise
        finally:
            self._handover.slot = outer

    def release(self, entry: Any, keep: bool = True) -> None:
        """Release what ``acquire()`` or ``acquire_idle()`` returned; unless ``keep``, close its connection first."""
        if type(entry) is not sqlalchemy_names.ConnectionRecord:
            if keep:
                entry.close()
            else:
                entry.invalidate()
        elif keep:
            self.queue.release(entry)
        else:
            try:
                self._close_in_slot(entry)
            finally:
                self.queue.release(entry)

    def _close_in_slot(self, slot: Any) -> None:
        try:
            slot.invalidate()
        except BaseException:
            # SQLAlchemy 2.0 keeps the connection if an interrupt comes before it is closed.
            connection = slot.dbapi_connection
            if connection is not None:
                slot.dbapi_connection = None
                if self._closer is not None:
                    self._closer.close_at_once(connection)
            raise

    def opened(self, connection: Any) -> None:
        """A connection has been opened for a request."""

    def closed(self, connection: Any) -> None:
        """A connection has been closed."""

    # SQLAlchemy calls these.

    def _do_get(self) -> Any:
        slot, self._handover.slot = self._handover.slot, None
        if slot is None:
            raise RuntimeError("a pool of django_mysqlpool hands connections out only for checkouts of Django's")
        return slot

    def _do_return_conn(self, record: Any) -> None:
        self.queue.release(record)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        # (SQLAlchemy's own method keeps an interrupt to itself if it is an ``Exception``.)
        if self._closer is not None:
            self._closer.close_connection(connection)

    # What SQLAlchemy's QueuePool tells about itself

    def close_idle(self, sessions: object = None, reason: CloseReason = "pool_closed") -> None:
        """Close every idle connection."""
        self.idle_slots.close_all(reason)

    def resize(self, pool_size: int, max_overflow: int) -> None:
        """Change the cap. What is idle above it is closed now; what is out, at its checkin, or soon after."""
        self.is_resized, self.sizes = True, (pool_size, max_overflow)
        self.queue.resize(_cap(pool_size, max_overflow))
        self.close_surplus()

    def close_surplus(self) -> None:
        """Close idle connections above the cap. Those that were on their way back when that was lowered are found later."""
        if self.surplus:
            self.idle_slots.trim(0, max(self.checkedin() - self.surplus, 0), "surplus")

    @property
    def attempts(self) -> SlotQueue[Any]:
        """Is told what became of attempts to connect."""
        return self.queue

    @property
    def surplus(self) -> int:
        """How many slots there are above the cap."""
        return self.queue.store.surplus

    def replace_lost(self, in_transit: Sized) -> None:
        """Close the connections of lost slots, and put new slots in their place.

        :param in_transit: not empty while any thread has a slot of which neither the queue nor a lease tells
        """
        if self._checks is not None:
            self.idle_slots.replace_lost(self._checks.is_out, self._checks.last_used, in_transit)

    def dispose(self) -> None:
        self.idle_slots.close_all("pool_closed")

    def size(self) -> int:
        return self.sizes[0]

    def checkedin(self) -> int:
        return len(self.queue.store.idle)

    def waiting(self) -> int:
        """How many threads wait for a connection now."""
        return self.queue.waiting

    def status(self) -> str:
        return f"SlotPool cap: {self.cap} idle: {self.checkedin()} waiting: {self.waiting()}"
