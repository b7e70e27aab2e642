"""Which connections may be handed out, and what an error of the driver's means for them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from .connection import PING_TIMEOUT, Lease, Session
from .connector import Connector
from .faults import Fault, fault_of, is_of_server, is_unready
from .server import ServerFacts
from .states import CLOSED, IN_QUESTION, REFUSED, CloseReason

_READ_ONLY = re.compile(r"read[\s_]+only", re.IGNORECASE)


class Liveness:
    """Decides if the connections of a pool are of further use.

    :param identity: the connection parameters
    :param connector: opens and closes them
    :param server: the facts about the server
    :param ping_after: seconds of idleness after which the server is asked
    :param ask_hook: asks the option ``discard_on_error`` about an error of an alias; ``None``: it does not say
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        connector: Connector,
        server: ServerFacts,
        *,
        ping_after: float,
        ask_hook: Callable[[Exception, str], bool | None],
    ) -> None:
        self._connector = connector
        self._server = server
        self._ping_after = ping_after
        #: The set-up of each session may ask for read-only transactions.
        self._is_set_up_read_only = _READ_ONLY.search(identity.get("init_command", "")) is not None
        self._ask_hook = ask_hook

    def is_usable(self, connection: Any, request: Any) -> bool:
        """True if an idle connection may be handed out; it may have to ask the server."""
        session: Session = connection.mysqlpool_session
        now = time.monotonic()
        reason = self._reason_to_close(session, now)
        if reason is None:
            left = math.inf if request is None else request.deadline - now
            if self.is_alive(session, max(min(PING_TIMEOUT, left), 0)):
                return True
            reason = "read_only" if session.writes == REFUSED else "lost"
        session.history.note_end(reason)
        return False

    def _reason_to_close(self, session: Session, now: float) -> CloseReason | None:
        """Tell why an idle session is not handed out, as far as can be seen without asking the server."""
        if session.generation != self._connector.generation:
            return self._connector.reason_of_generation
        if session.is_expired(self._server.lifetime, now):
            return "expired"
        if session.is_dirty:  # somebody has kept the driver's connection, and used it after its checkin
            return "unsalvageable"
        if session.writes == REFUSED and self._connector.writes.may_find_better(session):
            return "read_only"
        return None

    def is_alive(self, session: Session, timeout: float = PING_TIMEOUT) -> bool:
        """Check a session's liveness, and that its server takes writes if that is in question.

        The server is asked if the session needs a ping, or was not used for ``ping_after`` seconds.

        :param timeout: seconds that an answer may take
        """
        if session.socket.has_pending_data() or not self._answers_if_asked(session, timeout):
            self.note_death(session)
            return False
        if session.writes == REFUSED:
            session.needs_ping = True
        elif session.writes == IN_QUESTION:
            return self._connector.writes.takes_writes(session, timeout) is True
        return True

    def _answers_if_asked(self, session: Session, timeout: float) -> bool:
        if not session.needs_ping and time.monotonic() - session.last_used <= self._ping_after:
            return True
        try:
            answers = session.ask_or_raise(b"DO 0", timeout) is not None
        except (session.driver.error_class, OSError) as error:
            answers = session.writes == REFUSED and is_unready(error)  # that is known, and no death
        if answers:
            session.needs_ping = False
            session.last_used = time.monotonic()
        return answers

    def is_current(self, connection: Any) -> bool:
        """True if a connection was opened since the pool was last closed, and is not being closed itself."""
        session: Session = connection.mysqlpool_session
        return session.generation == self._connector.generation and session.state != CLOSED

    def is_out(self, connection: Any) -> bool:
        """True if somebody has a connection, or is closing it."""
        session: Session = connection.mysqlpool_session
        lease = session.lease
        return session.state == CLOSED or (lease is not None and lease.borrower() is not None)

    def last_used(self, connection: Any) -> float:
        """The time of a connection's last use; ``time.monotonic()``."""
        return connection.mysqlpool_session.last_used  # type: ignore[no-any-return]

    def note_death(self, dead: Session) -> None:
        """A session has died: each of its contemporaries answers a ping before it is handed out again."""
        for session in self._connector.sessions.copy():
            session.needs_ping = session is not dead

    def note_error(self, lease: Lease, error: Exception) -> None:
        """The driver has raised: decide if the connection is of further use, and if the others are."""
        session = lease.session
        fault = fault_of(
            error,
            asked_for_read_only=session.is_dirty or self._is_set_up_read_only,
            is_mariadb=self._server.is_mariadb,
        )
        # PyMySQL closes a connection that it has lost track of; and a server may hang up with any word.
        if not session.connection.open or (is_of_server(error) and session.socket.has_pending_data()):
            fault = Fault.LOST
        told = self._ask_hook(error, lease.alias)
        if told:
            lease.invalidate("discarded")
        elif told is None and fault is Fault.LOST:
            lease.invalidate("lost")
        elif told is None and fault is Fault.READ_ONLY:
            self._connector.writes.note_read_only(lease, error)
            if lease.is_broken:
                session.history.note_end("read_only")
        if fault is Fault.LOST and told is not False:
            self.note_death(session)
