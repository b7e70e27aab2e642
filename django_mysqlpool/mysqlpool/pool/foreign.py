"""Another pool class of SQLAlchemy's, or the user's, behind the interface of the default pool.

SQLAlchemy hands out proxies, waits, and counts. An event listener of ours refuses connections that are not usable, and
SQLAlchemy replaces those.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sized
from typing import TYPE_CHECKING, Any

import sqlalchemy.exc
from sqlalchemy import event
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, StaticPool

from . import sqlalchemy_names
from .locks import RLock
from .slot_pool import ConnectionChecks, ConnectionCloser, SlotPool
from .states import CLOSED, CloseReason
from .waiters import SlotRequest, SlotTimeout

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.options import PoolOptions

    from .connection import Session

#: Seconds of the fairness window if connections are held for a statement only: to hand each one to a thread that has to be
#: woken first would leave it unused for longer than it is used.
FAIRNESS_WINDOW = 0.1


class _Current(threading.local):
    """The request of the calling thread."""

    request: Any = None


class ClosingDialect(sqlalchemy_names.ConnDialect):  # type: ignore[misc]
    """Has SQLAlchemy's pools close connections by ``close``, which is called with the session."""

    def __init__(self, close: Callable[[Session], None]) -> None:
        self._close = close

    def do_close(self, dbapi_connection: Any) -> None:
        session: Session = dbapi_connection.mysqlpool_session
        session.state = CLOSED  # whatever interrupts this, nobody is handed it again
        self._close(session)

    do_terminate = do_close


class ForeignPool:
    """Has the interface of ``SlotPool``. It has no queue: nothing is trimmed, renewed or kept warm."""

    has_queue = False
    #: SQLAlchemy closes connections by its own lights: those that its pool does not keep.
    default_close_reason = "surplus"
    #: Its cap is SQLAlchemy's.
    is_resized = False
    surplus = 0

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.lock = RLock()
        self._current = _Current()
        self._checks: ConnectionChecks | None = None
        #: How many have each connection; 0: it has been opened for a request, and SQLAlchemy is about to hand it out.
        self.handed_out: dict[Any, int] = {}
        #: Is told what became of attempts to connect.
        self.attempts = _NoBackoff()

    def renew_lock(self) -> Any:
        """In a forked child: take a new lock, for a thread of the parent's may have held the last one."""
        self.lock = RLock()
        return self.lock

    def attach(self, checks: ConnectionChecks, closer: ConnectionCloser, reclaim: Callable[[], None]) -> None:
        """Have our pool check the connections before each checkout; SQLAlchemy closes them, by the dialect."""
        self._checks = checks
        event.listen(self.pool, "checkout", self._before_checkout)

    @property
    def cap(self) -> int | None:
        """The most connections that may be open at once; ``None``: no limit, or none that is known."""
        if isinstance(self.pool, (StaticPool, AssertionPool)):
            return 1
        return sqlalchemy_names.queue_pool_limit(self.pool) if isinstance(self.pool, QueuePool) else None

    @property
    def timeout(self) -> float:
        """Seconds that SQLAlchemy waits for a connection, if it is a pool that tells."""
        timeout = getattr(self.pool, "timeout", None)
        return timeout() if callable(timeout) else math.inf

    def acquire_idle(self) -> None:
        """Leave it to ``acquire()``: only SQLAlchemy knows what is idle."""

    def acquire(self, request: SlotRequest) -> Any:
        """Acquire SQLAlchemy's proxy of a usable connection.

        :raises SlotTimeout: if none came free in time
        """
        # (The garbage collector runs code of the user's anywhere: a request may stand in another one of this thread's.)
        outer, self._current.request = self._current.request, request
        try:
            return self.pool.connect()
        except sqlalchemy.exc.TimeoutError as error:
            raise SlotTimeout(str(error)) from None
        finally:
            self._current.request = outer

    def request_of(self, record: Any) -> Any:
        """The request for which a connection is opened in this thread."""
        return self._current.request

    def _before_checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        """SQLAlchemy replaces the connection if this raises."""
        assert self._checks is not None
        if self.handed_out.get(connection) == 0 or self._checks.is_usable(connection, self._current.request):
            with self.lock:  # close_idle() closes under it
                number = self.handed_out.get(connection)
                if number == 0 or self._checks.is_current(connection):
                    self.handed_out[connection] = (number or 0) + 1
                    return
        raise sqlalchemy.exc.DisconnectionError("the session has ended, or reached the end of its life")

    def release(self, entry: Any, keep: bool = True) -> None:
        """Return a proxy; unless ``keep``, close its connection."""
        connection = entry.dbapi_connection
        try:
            if keep:
                entry.close()
            else:
                entry.invalidate()
        finally:
            # (SingletonThreadPool hands the same proxy out twice to a thread.)
            if connection is not None and not entry.is_valid:
                with self.lock:
                    number = self.handed_out.pop(connection, 0)
                    if number > 1:
                        self.handed_out[connection] = number - 1

    # What the pool tells of connections

    def opened(self, connection: Any) -> None:
        """A connection has been opened for a request."""
        self.handed_out[connection] = 0

    def closed(self, connection: Any) -> None:
        """A connection has been closed."""
        self.handed_out.pop(connection, None)

    def close_idle(self, sessions: Iterable[Session], reason: CloseReason) -> None:
        """Close the connections that nobody has; in a QueuePool their places stay, empty."""
        if isinstance(self.pool, QueuePool):
            self._close_queue(self.pool, reason)
            return
        assert self._checks is not None
        for session in sessions:
            with self.lock:  # a thread that is about to be handed the connection waits, and gets another one
                record, connection = session.record, session.connection
                if record is None or connection is None or connection in self.handed_out:
                    continue
                if not self._checks.is_current(connection):
                    session.history.note_end(reason)
                    record.close()

    @staticmethod
    def _close_queue(pool: QueuePool, reason: CloseReason) -> None:
        records = deque(iter(lambda: sqlalchemy_names.idle_record(pool), None))
        try:
            for record in tuple(records):
                if record.dbapi_connection is not None:
                    record.dbapi_connection.mysqlpool_session.history.note_end(reason)
                record.close()
                sqlalchemy_names.put_back(pool, records.popleft())
        finally:
            for record in records:  # after an interrupt: it is replaced at its next checkout
                sqlalchemy_names.put_back(pool, record)

    def size(self) -> Any:
        """SQLAlchemy's size of the pool, if it has one."""
        size = getattr(self.pool, "size", None)
        return size() if callable(size) else size

    def waiting(self) -> int:
        """Unknown to SQLAlchemy."""
        return 0

    def replace_lost(self, in_transit: Sized) -> None:
        """Nothing is lost here that could be found."""


class _NoBackoff:
    """Nobody waits here, or backs off: that is SQLAlchemy's business."""

    def connect_succeeded(self) -> None:
        pass

    def connect_failed(self, error: Exception, min_wait: float) -> None:
        pass

    def connect_refused(self, **pause: float) -> None:
        pass


def make_source(
    options: PoolOptions, create: Callable[[Any], Any], close: Callable[[Session], None]
) -> SlotPool | ForeignPool:
    """The pool of SQLAlchemy's that the options name, behind one interface.

    :param create: opens a connection in a record
    :param close: closes a session's connection
    """
    made = (options.pool_class or SlotPool)(create, dialect=ClosingDialect(close), **options.arguments)
    sqlalchemy_names.prepare_events(made)
    if not isinstance(made, SlotPool):
        return ForeignPool(made)
    if options.releases_per_transaction:
        made.queue.fairness_window = FAIRNESS_WINDOW
    return made
