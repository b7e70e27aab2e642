"""A session: the server's side of one connection, from connect to close.

It knows whether it is set up as Django wants it, what its borrower has left in it, and whether it still lives.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool.base import _ConnDialect

from .glance import glance
from .sockets import identity, is_readable
from .statements import Verdict

if TYPE_CHECKING:
    from .driver import Driver, Rows
    from .lease import Lease
    from .transactions import Run

#: The shortest and the longest life of a connection, as parts of ``recycle``: made together, they don't die together.
JITTER = (0.8, 1.0)

#: Seconds that a server may take to answer a ping before it counts as dead.
PING_PATIENCE = 5.0


class Session:
    """The state of one server session.

    Only the thread that holds it may call its methods; what it tells may be read by any.
    """

    __slots__ = (
        "_has_news",
        "_socket",
        "born",
        "connection",
        "descriptor",
        "dirtied_by",
        "driver",
        "generation",
        "is_set_up",
        "is_suspect",
        "jitter",
        "last_id_of",
        "last_used",
        "lease",
        "more_results",
        "record",
        "run",
        "verdict",
    )

    def __init__(self, connection: Any, record: Any, generation: int, driver: Driver) -> None:
        self.connection = connection
        self.driver = driver
        #: Tells whether another answer follows the last statement's (rows of an unbuffered cursor are none); ``None``: the
        #: driver can't tell without asking for it.
        self.more_results = driver.more_results(connection)
        #: SQLAlchemy's, which the connection is in.
        self.record = record
        #: Of its pool when it was opened; ``close_pool()`` begins a new one.
        self.generation = generation
        #: While it is out.
        self.lease: Lease | None = None
        #: Whether Django's ``init_connection_state`` has run since the connect or the last reset.
        self.is_set_up = False
        #: Whether it must answer a ping before it is lent again.
        self.is_suspect = False
        self.verdict = Verdict.CLEAN
        self.born = time.monotonic()
        #: When its last statement ended, or it was last given back; ``time.monotonic()``.
        self.last_used = self.born
        #: The statement that did it; for its kind.
        self.dirtied_by: object = None
        #: Whose the last statement was, and with what it belongs together; where ``release`` is "transaction".
        self.run: Run | None = None
        #: Whose statement may have set ``LAST_INSERT_ID()``, since the connect or the last reset.
        self.last_id_of: Run | None = None
        self.jitter = random.uniform(*JITTER)
        #: Of its socket. The driver does not tell it while another thread uses the connection, as one may during a fork.
        self.descriptor = driver.descriptor(connection)
        # No program that this one starts keeps the session alive.
        os.set_inheritable(self.descriptor, False)
        self._socket = identity(self.descriptor)
        #: An idle session's socket has nothing to read, except where the server hung up or says why it is about to.
        self._has_news = glance(self.descriptor)
        connection.mysqlpool_session = self

    def __repr__(self) -> str:
        holder = self.lease.thread.name if self.lease else None
        return f"<Session of {self.connection!r}, {self.verdict.name}, held by {holder}>"

    def note(self, verdict: Verdict, statement: object) -> None:
        """A statement with this verdict is about to be sent."""
        if not self.verdict:
            self.dirtied_by = statement
        self.verdict = max(self.verdict, verdict)

    def mark_set_up(self) -> None:
        """What has been done to the session up to now is its set-up, and no dirt."""
        self.is_set_up = True
        self.verdict = Verdict.CLEAN

    def has_its_socket(self) -> bool:
        """Whether the descriptor is still the session's own socket.

        After a statement that lost its server the driver has closed the socket, still tells its number, and that number
        may be another file's by now.
        """
        try:
            return identity(self.descriptor) == self._socket
        except OSError:
            return False

    def has_hung_up(self) -> bool:
        """Whether the server has, as any thread may ask of an idle session."""
        try:
            return is_readable(self.driver.descriptor(self.connection), 0)
        except Exception:  # it is being closed
            return True

    def is_overdue(self, lifetime: float, now: float) -> bool:
        """Whether it has lived for ``lifetime`` seconds, less its jitter; ``now`` is ``time.monotonic()``."""
        return now - self.born > lifetime * self.jitter

    def is_fresh(self, lifetime: float, ping_after: float, now: float) -> bool:
        """Whether it lives, and may for longer, for all that can be known without asking the server."""
        return not (
            self.is_suspect
            or now - self.last_used > ping_after
            or now - self.born > lifetime * self.jitter
            or self._has_news()
        )

    def is_alive(self, ping_after: float, now: float, patience: float = PING_PATIENCE) -> bool:
        """Whether the server still listens; without a round trip where it was used ``ping_after`` seconds ago or later.

        ``patience`` is how many seconds an answer may take.
        """
        if self._has_news():
            return False
        if self.is_suspect or now - self.last_used > ping_after:
            if not self._answers(patience):
                return False
            self.is_suspect = False
            self.last_used = time.monotonic()
        return True

    def _answers(self, patience: float) -> bool:
        return self.ask(b"DO 0", patience) is not None

    def ask(self, query: bytes, patience: float = PING_PATIENCE) -> Rows | None:
        """The rows that the server answers; ``None`` where there is no answer in time, or an error."""
        self.run = None
        try:
            return self.driver.ask(self.connection, query, patience)
        except Exception:
            return None

    def needs_server_to_clean(self) -> bool:
        """Whether ``clean()`` has to talk with the server: to reset or close the session, or to roll back."""
        return self.verdict is not Verdict.CLEAN or not self.connection.get_autocommit()

    def clean(self, params: Callable[[], Mapping[str, Any]], *, always_reset: bool) -> bool:
        """Leave nothing of this borrower's in the session; ``False`` where only closing it does that.

        ``params`` tells the connection parameters, if it is to be reset. Errors of the driver go up: the connection is then
        to be closed too.
        """
        if self.verdict or always_reset:
            if not self._can_be_reset() or not self._reset(params()):
                return False
        elif not self.driver.is_between_statements(self.connection):
            return False
        elif not self.connection.get_autocommit():
            self.connection.rollback()
        self.last_used = time.monotonic()
        return True

    def _can_be_reset(self) -> bool:
        return (
            self.verdict is not Verdict.UNSALVAGEABLE
            and self.driver.is_between_statements(self.connection)
            # MariaDB Connector/C's mysql_change_user() writes to freed memory where the connection has been cut.
            and self.has_its_socket()
        )

    def _reset(self, params: Mapping[str, Any]) -> bool:
        """Make the session as new, less what ``init_connection_state`` does: that follows at its next checkout."""
        self.is_set_up = False
        self.last_id_of = None
        if not self.driver.reset(self.connection, params):
            return False
        self.run = None
        self.verdict = Verdict.CLEAN
        return True


class Farewell(_ConnDialect):
    """How SQLAlchemy closes a connection: the server counts it until it has read the farewell, so that is waited for.

    Otherwise the next connection could be one more than the cap, as the server counts.
    """

    #: Seconds.
    PATIENCE = 1.0

    def __init__(self, around: Callable[[Session, Callable[[], None]], None]) -> None:
        #: Called with a session and what closes its connection.
        self._around = around

    def do_close(self, dbapi_connection: Any) -> None:
        session: Session = dbapi_connection.mysqlpool_session
        self._around(session, lambda: self._close(dbapi_connection, session))

    def _close(self, dbapi_connection: Any, session: Session) -> None:
        socket = os.dup(session.descriptor) if session.has_its_socket() else None
        # They refer to each other; a closed connection must not wait for the garbage collector.
        session.connection = session.record = session.more_results = None
        try:
            session.driver.close(dbapi_connection)
        finally:
            if socket is not None:
                self._wait_for_server(socket)

    def _wait_for_server(self, socket: int) -> None:
        try:
            # Readable: the server has hung up, or what nobody has read is still on its way.
            while is_readable(socket, self.PATIENCE) and os.read(socket, 65536):
                pass
        except OSError:
            pass
        finally:
            os.close(socket)

    do_terminate = do_close
