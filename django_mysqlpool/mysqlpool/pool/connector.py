"""The connections of a pool: each is opened and closed here, outside every lock, and in no fork."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import Error, OperationalError

from django_mysqlpool.mysqlpool.drivers.sockets import peer_of
from django_mysqlpool.mysqlpool.errors import copy_of
from django_mysqlpool.mysqlpool.log import here, say
from django_mysqlpool.mysqlpool.masking import ConnectionParams

from .closing import Farewell
from .connection import PING_TIMEOUT, Session
from .faults import Fault, fault_of
from .fork import ForkBarrier
from .pressure import PAUSE_AFTER_YIELD, Pressure
from .server import ServerFacts
from .states import CLOSED, EXPECTED, REFUSED, CloseReason
from .statistics import Statistics
from .waiters import SlotRequest
from .writes import (
    FIRST_PAUSE_BETWEEN_SERVERS,
    HOPE,
    LONGEST_PAUSE_BETWEEN_SERVERS,
    PART_OF_TIMEOUT,
    ServerState,
    WriteCare,
)

if TYPE_CHECKING:
    from .borrowing import Borrower
    from .foreign import ForeignPool
    from .slot_pool import SlotPool

#: Seconds that connecting may take if neither the driver's ``connect_timeout`` nor the pool's ``timeout`` says less.
CONNECT_TIMEOUT = 10


class PoolForgotten(Exception):
    """The pool opens no connection any more: nobody would find it. Another one is found in its place."""


#: Parameters of the driver's that name files, which may have an ``init-command`` in them.
_OPTION_FILES = {"read_default_file", "read_default_group"}


@dataclass(eq=False)
class ConnectRequest(SlotRequest):
    """A checkout that may have to open a connection."""

    borrower: Borrower = field(kw_only=True)
    params: Mapping[str, Any] = field(kw_only=True, repr=False)
    #: ``time.monotonic()``
    started_at: float = field(default_factory=time.monotonic, init=False)
    #: The connection that was just opened for it is not to be handed out.
    is_refused: bool = field(default=False, init=False)

    def seconds_left(self) -> float:
        return max(self.deadline - time.monotonic(), 0)


class Connector:
    """Opens and closes the connections of a pool.

    :param pool_name: for log lines
    :param server: the facts about the server
    :param pressure: how full the server is
    :param statistics: counts what happens
    :param hand_over: called before the thread waits for the server
    :param on_open: called after a connection has been opened
    """

    #: The pool of SQLAlchemy's that the connections are in.
    source: SlotPool | ForeignPool
    barrier: ForkBarrier
    writes: WriteCare

    def __init__(
        self,
        pool_name: str,
        server: ServerFacts,
        pressure: Pressure,
        *,
        statistics: Statistics,
        hand_over: Callable[[], None],
        on_open: Callable[[], None],
    ) -> None:
        self._pool_name = pool_name
        self._server = server
        self._pressure = pressure
        self.hand_over = hand_over
        self._on_open = on_open
        self._statistics = statistics
        #: The requests for which connections are being opened. (Other threads change it: whoever goes through it goes
        #: through a copy(), which is atomic without a GIL too.)
        self.opening: set[ConnectRequest] = set()
        #: ``close_pool()`` begins a new one. Connections of an older one are closed at their checkin.
        self.generation = 0
        #: Why the connections of an older generation are closed.
        self.reason_of_generation: CloseReason = "pool_closed"
        #: No connection is opened any more.
        self.is_stopped = False
        #: The error, and when it happened; ``time.monotonic()``.
        self.last_connect_error: tuple[Exception | None, float] = (None, 0.0)
        self._farewell = Farewell()

    @property
    def sessions(self) -> set[Session]:
        """The open ones. Other threads change the set, so iterate over a copy."""
        return self._statistics.sessions

    def attach(self, source: SlotPool | ForeignPool, identity: Mapping[str, Any]) -> None:
        """Open connections for ``source``, whose creator is ``create()``; ``identity``: the connection parameters."""
        self.source = source
        self.barrier = ForkBarrier(source.lock)
        self.writes = WriteCare(
            self._pool_name,
            self.sessions,
            has_option_files=not _OPTION_FILES.isdisjoint(identity),
            can_choose=source.has_queue,
        )

    def note_server_data(self, data: dict[str, Any], state: ServerState) -> None:
        """Remember for all wrappers what one has read; the state's variables are its session's."""
        self._server.note_data(data, state.wait_timeout)
        self.writes.note_first(state)

    # Opening

    def create(self, record: Any) -> Any:
        """Open a connection for the request of a slot; SQLAlchemy's creator.

        :raises PoolForgotten: if the pool opens no connection any more
        """
        request: Any = self.source.request_of(record)
        if request is None:
            raise RuntimeError("a pool of django_mysqlpool opens connections only for checkouts of Django's")
        connection: Any = None
        barrier, operation = self.barrier, object()
        try:
            try:
                barrier.begin(operation, request.seconds_left())
                if self.is_stopped:
                    raise PoolForgotten
                self.opening.add(request)
                connection = self._open(request, record)
            finally:
                barrier.operations.pop(operation, None)
                barrier.note_end()
        except BaseException:  # an interrupt: SQLAlchemy has not got it, and would not close it
            if connection is not None:
                self.close_session_at_once(connection.mysqlpool_session)
            raise
        finally:
            self.opening.discard(request)
        return connection

    def _open(self, request: ConnectRequest, record: Any) -> Any:
        """Open a connection for a request."""
        generation = self.generation
        borrower = request.borrower
        # In whole seconds that end with the request's deadline.
        seconds = min(request.params.get("connect_timeout") or CONNECT_TIMEOUT, request.deadline - time.monotonic())
        params = ConnectionParams(request.params, connect_timeout=max(math.ceil(seconds), 1))
        began = time.monotonic()
        try:
            connection = borrower.open_connection(params)
        except Exception as error:
            is_refusal = isinstance(error, (borrower.driver.error_class, Error))
            self._statistics.note_open_failure()
            self._note_connect_error(error, params["connect_timeout"] if is_refusal else math.inf)
            raise
        # (Nothing comes in between: an interrupt would leave an open connection to whoever keeps it.)
        try:
            seconds = time.monotonic() - began
            session = Session(connection, record, generation, borrower.driver, request)
            change = self._server.note_server(connection.get_server_info(), peer_of(session.descriptor))
            self.source.opened(connection)
            # First this: it may be counted in neither for a moment, and never in both.
            self.opening.discard(request)
            # Until it has said otherwise, it is no hope to others.
            is_in_doubt = self.writes.known.are_in_doubt
            session.writes = REFUSED if is_in_doubt else EXPECTED
            self._statistics.note_opened(session, seconds)
            if change is not None:
                self._statistics.note_server_change(change)
            self._on_open()
            if is_in_doubt and not self._accepts(session, request):
                request.is_refused = True
            else:
                self.source.attempts.connect_succeeded()
        except BaseException:
            # (The two refer to each other.)
            made: Session | None = getattr(connection, "mysqlpool_session", None)
            if made is not None:
                self.close_session_at_once(made)
            else:  # nobody else would close it before the garbage collector comes, and the server counts it
                with suppress(borrower.driver.error_class):
                    borrower.driver.close(connection)
            raise
        return connection

    def _accepts(self, session: Session, request: ConnectRequest) -> bool:
        """Ask a new session if it takes writes."""
        # Until then it is not content with a server that takes no writes if others may.
        hopes_until = request.started_at + min(HOPE, PART_OF_TIMEOUT * self.source.timeout)
        if self.writes.accepts_new(session, min(PING_TIMEOUT, request.seconds_left()), hopes_until):
            return True
        self.last_connect_error = (OperationalError("its server takes no writes, and others do"), time.monotonic())
        self.source.attempts.connect_refused(first=FIRST_PAUSE_BETWEEN_SERVERS, longest=LONGEST_PAUSE_BETWEEN_SERVERS)
        return False

    def _note_connect_error(self, error: Exception, min_wait: float) -> None:
        self.last_connect_error = (copy_of(error), time.monotonic())
        if not self.source.has_queue:
            return
        if fault_of(error) is Fault.FULL:
            if not self._pressure.is_high:
                # What an interrupt has left half open may be in a cycle of references, and counts on the server.
                gc.collect()
            self._pressure.rise()
            self.source.attempts.connect_refused()
        else:
            # Waiters can hope for a connection that is open, for as long as connecting may take. If none is open, they fare
            # as this one did.
            self.source.attempts.connect_failed(error, 0 if not self.sessions and min_wait < math.inf else min_wait)

    # Closing

    def should_yield(self, session: Session) -> bool:
        """True if the server is full, and a connection is to be yielded to another process."""
        if not self._pressure.should_yield(session.origin.created_at):
            return False
        self.source.attempts.connect_refused(first=PAUSE_AFTER_YIELD, longest=PAUSE_AFTER_YIELD)
        return True

    def close_connection(self, connection: Any) -> None:
        """Close a connection for SQLAlchemy."""
        session: Session = connection.mysqlpool_session
        record = session.record
        if session.connection is None:
            return  # an interrupt came when it was being closed before
        session.state = CLOSED  # whatever interrupts this, nobody is handed it again
        try:
            self.close_session(session)
        except session.driver.error_class as error:
            say(logging.ERROR, "Pool %s: closing connection %r failed: %s", self._pool_name, connection, error)
        except BaseException:
            session.close_at_once(connection)
            if record is not None:
                record.dbapi_connection = None  # which SQLAlchemy 2.0 leaves as it was
            raise

    def close_session(self, session: Session) -> None:
        """Close a session's connection, which counts for the cap until the server has read the farewell."""
        connection = session.connection
        self.hand_over()
        barrier, operation = self.barrier, object()
        try:
            barrier.begin(operation)
            self._farewell.close(session)
        finally:
            try:
                self._farewell.close(session)  # if an interrupt, or the want of memory, has come before it
            finally:
                barrier.operations.pop(operation, None)
                self._forget_session(session, connection)
                barrier.note_end()

    def _forget_session(self, session: Session, connection: Any) -> None:
        reason = session.history.close_reason or self.source.default_close_reason
        # (A handler that writes through the ORM may close one each time.)
        if self._statistics.note_closed(session, reason) and not here.is_telling:
            say(logging.DEBUG, "Pool %s: a connection is closed: %s.", self._pool_name, reason)
        self.source.closed(connection)

    def close_session_at_once(self, session: Session) -> None:
        """Close a session's connection without a wait for the server."""
        connection = session.connection
        self._forget_session(session, connection)
        session.close_at_once(connection)

    def close_at_once(self, connection: Any) -> None:
        """Close a connection without a wait for the server."""
        self.close_session_at_once(connection.mysqlpool_session)

    # In a fork

    def stop_in_child(self) -> None:
        """Open nothing any more: the pool is the parent's, and a thread that held its lock does not exist here."""
        self.is_stopped = True
        self.barrier = ForkBarrier(self.source.renew_lock())
