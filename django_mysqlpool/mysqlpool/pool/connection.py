"""The two records of a pool: a session for each open connection, and a lease for each that is out.

A session is the server's side of a connection. Its record lives from connect to close, and knows what its borrowers have
left in it and if it is still alive. A lease lives from checkout to checkin, and knows who has the connection.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.drivers.observed import ObservedConnection
from django_mysqlpool.mysqlpool.drivers.sockets import Socket, is_readable
from django_mysqlpool.mysqlpool.statements import SessionEffect, StatementEffects, analyser_for, kind_of

from .borrowing import LeasingPool
from .faults import is_before_sending
from .history import History, Origin
from .leftovers import holds_what_no_reset_clears
from .locks import RLock
from .states import CLOSED, DIRTY, EXPECTED, IDLE, NEW, READY, RETURNED, UNSALVAGEABLE, SessionState

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.drivers.base import Driver, Rows

    from .borrowing import BorrowerReference
    from .stacks import Stack
    from .states import CloseReason
    from .waiters import SlotRequest

#: The shortest and the longest life of a connection, as parts of ``recycle``: made together, they do not die together.
JITTER = (0.8, 1.0)

#: Seconds that a server may take to answer a ping before it counts as dead.
PING_TIMEOUT = 5.0

_STATE_AFTER = {SessionEffect.DIRTY: DIRTY, SessionEffect.UNSALVAGEABLE: UNSALVAGEABLE}


class Session:
    """The record of an open connection.

    Only the thread that has the connection may call its methods. What it tells may be read by any thread.
    """

    __slots__ = (
        "__weakref__",
        "analyse",
        "connection",
        "driver",
        "generation",
        "history",
        "is_sending",
        "last_used",
        "lease",
        "needs_ping",
        "observed",
        "origin",
        "record",
        "socket",
        "state",
        "writes",
    )

    def __init__(self, connection: Any, record: Any, generation: int, driver: Driver, request: SlotRequest) -> None:
        self.connection = connection
        self.driver = driver
        #: SQLAlchemy's record, which the connection is in.
        self.record = record
        #: The pool's generation when it was opened; ``close_pool()`` begins a new one.
        self.generation = generation
        #: While it is out.
        self.lease: Lease | None = None
        #: One of ``SessionState``.
        self.state: int = NEW
        #: It must answer a ping before it is handed out again.
        self.needs_ping = False
        #: One of ``TakesWrites``.
        self.writes: int = EXPECTED
        self.origin = Origin(time.monotonic(), random.uniform(*JITTER), ref(request))
        #: When its last statement ended, or it was returned; ``time.monotonic()``.
        self.last_used = self.origin.created_at
        self.history = History()
        self.observed = ObservedConnection()
        #: Analyses its statements: what is harmless depends on the server, and what bytes say on the character set.
        self.analyse = analyser_for(connection.get_server_info(), connection.character_set_name())
        #: The driver sends something that is known here: an observed cursor sends it, or the pool.
        self.is_sending = False
        # The driver does not tell its descriptor while another thread uses the connection, as one may during a fork.
        self.socket = Socket(driver.descriptor(connection))
        # No program that this one starts keeps the session alive.
        os.set_inheritable(self.socket.descriptor, False)
        connection.mysqlpool_session = self
        self.observed.observe(connection, driver, self)

    def __repr__(self) -> str:
        holder = self.lease.thread.name if self.lease else None
        return f"<Session of {self.connection!r}, {SessionState(self.state).name}, held by {holder}>"

    # State

    @property
    def is_being_opened(self) -> bool:
        """True if the thread that has opened its connection is still about to hand it out."""
        request = self.origin.request()
        return request is not None and not request.is_finished

    @property
    def is_dirty(self) -> bool:
        """True if it holds something of its borrower's, or is closed."""
        return self.state >= DIRTY

    def note(self, effects: StatementEffects, statement: object) -> None:
        """Note that a statement that leaves something is about to be sent."""
        self.note_call(effects.on_session, kind_of(statement))
        self.history.is_opaque |= effects.is_opaque

    def note_sent(self, statement: object) -> None:
        """Note that the driver is about to send a statement that no observed cursor has analysed."""
        effects = self.analyse(statement)
        if effects.on_session:
            self.note(effects, statement)

    def note_call(self, effect: SessionEffect, name: str | None) -> None:
        """Note that something that leaves something is about to be done to the session."""
        if self.state < DIRTY:
            self.history.dirtied_by = name
        self.state = max(self.state, _STATE_AFTER[effect])

    def mark_set_up(self) -> None:
        """NEW, or dirty by its set-up, to READY."""
        if self.state > READY:
            effect = SessionEffect.UNSALVAGEABLE if self.state == UNSALVAGEABLE else SessionEffect.DIRTY
            self.history.set_up_effect = max(self.history.set_up_effect, effect)
        self.state = READY
        self.history.is_opaque = False
        self.observed.note_cursor_class()

    def go_back_to(self, state: int) -> None:
        """Note that what was sent since ``state`` is known, and leaves nothing; what is closed stays closed."""
        if self.state != CLOSED:
            self.state = state

    # Liveness

    def is_expired(self, lifetime: float, now: float) -> bool:
        """True if it has lived for ``lifetime`` seconds, less its jitter; ``now`` is ``time.monotonic()``."""
        origin = self.origin
        return now - origin.created_at > lifetime * origin.jitter

    def has_hung_up(self) -> bool:
        """True if the server of an idle session has hung up; any thread may ask."""
        try:
            return is_readable(self.driver.descriptor(self.connection), 0)
        except (self.driver.error_class, OSError, AttributeError, ValueError):  # it is being closed
            return True

    # Questions of the pool's

    def ask(self, query: bytes, timeout: float = PING_TIMEOUT) -> Rows | None:
        """Ask the server something that leaves nothing.

        :returns: the rows; ``None`` if there is no answer in time, or an error
        """
        try:
            return self.ask_or_raise(query, timeout)
        except (self.driver.error_class, OSError):
            return None

    def ask_or_raise(self, query: bytes, timeout: float = PING_TIMEOUT) -> Rows | None:
        """Ask the server; an error is raised. After ``None`` the answer may still come: the session is of no more use."""
        self.history.sequence = None
        before, self.is_sending = self.is_sending, True
        try:
            return self.driver.ask(self.connection, query, timeout)
        finally:
            self.is_sending = before

    # Checkin

    def needs_server_to_clean(self) -> bool:
        """True if to clean it one has to talk with the server: to reset or close the session, or to roll back."""
        return self.state >= DIRTY or not self.observed.get_autocommit()

    def reset(self, params: Mapping[str, Any]) -> bool:
        """DIRTY to NEW: Django sets the session up again at its next checkout.

        :param params: the connection parameters
        :returns: ``False`` if only closing it leaves nothing of this borrower's
        """
        self.state = max(self.state, DIRTY)  # until it is done
        self.history.set_up_effect = SessionEffect.CLEAN
        self.history.last_id_of = None
        if not self.driver.reset(self.connection, params):
            return False
        if self.history.is_opaque and holds_what_no_reset_clears(
            self.ask, self.connection.get_server_info(), keeps_role=self.driver.reset_keeps_role
        ):
            self.history.note_end("unsalvageable")
            return False
        self.history.is_opaque = False
        self.history.sequence = None
        self.state = NEW
        return True

    @property
    def descriptor(self) -> int:
        return self.socket.descriptor

    def has_its_socket(self) -> bool:
        return self.socket.is_still_open()

    # The end

    def detach(self) -> Any:
        """Part from the connection: the two refer to each other, and it must not wait for the garbage collector.

        :returns: the connection; ``None`` if that was done before
        """
        self.state = CLOSED
        if self.connection is not None:
            self.observed.restore(self.connection)  # first: after an interrupt here the session still has it
        # (In one step of the interpreter, so that only one thread gets it.)
        connection, self.connection = self.connection, None
        self.record = None
        return connection

    def close_at_once(self, connection: Any = None) -> None:
        """Close the connection without a wait for the server, if an interrupt has kept it from being closed."""
        connection = self.detach() or connection
        if connection is not None:
            with suppress(self.driver.error_class):
                self.driver.close(connection)


class Lease:
    """The record of a connection that is out.

    The session refers to its lease, so the lease must not keep its borrower alive: the garbage collector finds a wrapper
    that is dropped without being closed.

    :param pool: where its connection is from
    :param session: the connection's
    :param entry: to be released at the checkin: SQLAlchemy's record of the connection, or its proxy
    :param borrower: who has it
    :param thread: the holder: the thread that used it last. Threads may share a wrapper.
    :param thread_id: that thread's
    :param checked_out_at: ``time.monotonic()``
    """

    # (One is made at each checkout. Python from 3.13 on makes an object that has no slots faster.)

    def __init__(
        self,
        pool: LeasingPool,
        session: Session,
        entry: Any,
        borrower: BorrowerReference,
        thread: threading.Thread,
        thread_id: int,
        checked_out_at: float,
    ) -> None:
        self.pool = pool
        self.session = session
        self.entry = entry
        self.borrower = borrower
        self.thread = thread
        self.thread_id = thread_id
        self.checked_out_at = checked_out_at
        #: One of ``LeaseState``.
        self.state: int = IDLE
        #: A ``LeaseScope``: what it was taken for.
        self.scope: Any = None
        #: Where the checkout happened, if it was in no scope, or the pool's ``leak_after`` asks for it.
        self.stack: Stack | None = None
        #: The last statement's template, for the kind of statement that it is.
        self.statement: object = None
        #: The release policy's state of it, if the connection may be returned between statements.
        self.sharing: Any = None
        #: Django has connected with it: it is set up, and counted to its scope.
        self.is_connected = False
        #: The connection is of no more use: it is closed at its checkin, or before the next statement.
        self.is_broken = False
        #: The holder returns it when it is done with what it is doing.
        self.return_requested = False

    @property
    def alias(self) -> str:
        return self.borrower.alias

    @property
    def use(self) -> threading.RLock:
        """Held by the holder while it does anything with the connection, and by others who want it back."""
        return self.borrower.use

    @property
    def is_returned(self) -> bool:
        return self.state == RETURNED

    def detach_after_fork(self) -> None:
        """To RETURNED, in a child. What it was taken for, a request say, goes on in the parent; cursors of it end here."""
        self.borrower.use = RLock()  # a thread of the parent's may have held the last one
        self.state = RETURNED

    def is_of_a_dead_thread(self) -> bool:
        """True if its holder has ended without returning it."""
        return compat.has_ended(self.thread)

    def change_holder(self) -> None:
        """Note that another thread uses the connection, through a wrapper that the two share; under ``use``."""
        self.thread = threading.current_thread()
        self.thread_id = threading.get_ident()

    def is_stray(self) -> bool:
        """True if an interrupt has lost it on its way to or from its borrower; under ``use``, so none is on its way."""
        borrower = self.borrower()
        return borrower is not None and not (borrower.lease is self and self.is_connected)

    def invalidate(self, reason: CloseReason) -> None:
        """Have the connection closed at its checkin."""
        self.is_broken = True
        self.session.history.note_end(reason)

    def note_error(self, error: BaseException) -> None:
        """Note how something of the holder's has ended: with the driver's error, or an interrupt in the middle of it."""
        if isinstance(error, self.session.driver.error_class):
            self.pool.liveness.note_error(self, error)
        elif not (isinstance(error, Exception) and is_before_sending(error)):
            # Celery's time limit or gevent's Timeout, say, in the middle of sending or reading: nobody knows where the two
            # sides are.
            self.invalidate("interrupted")

    def note_death(self) -> None:
        """Note that the server does not answer to the holder any more."""
        self.invalidate("lost")
        self.pool.liveness.note_death(self.session)

    def return_if_requested(self) -> None:
        """Return the connection if that was requested: the holder is done with a statement or a transaction."""
        if self.return_requested and self.state != RETURNED:
            borrower = self.borrower()
            if borrower is not None:
                borrower.check_in_if_idle(self)
