"""Servers that take no writes, and when to look for one that does."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.statements import SessionEffect

from .connection import PING_TIMEOUT, Lease, Session
from .faults import is_about_transaction, is_unready
from .states import EXPECTED, IN_QUESTION, REFUSED

#: Seconds after the last refusal for which new connections are asked before they are lent.
LASTS = 60.0
#: Seconds between two connections that are given up for a new one, while that is refused writes too: the first pause, and
#: the longest; each is up to twice the last.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
#: The shortest part of a pause: processes that were refused together don't come back together.
JITTER = 0.5
#: Seconds between attempts to connect to another server, while connections to such are open: the first pause, the longest.
FIRST_PAUSE_BETWEEN_SERVERS = 0.05
LONGEST_PAUSE_BETWEEN_SERVERS = 0.5
#: Seconds that a checkout hopes for a server that takes writes, and the part of its time, before it has any.
HOPE = 5.0
PART_OF_TIMEOUT = 0.5

#: One question for both servers; a Galera node without a quorum answers it too. No privilege is needed.
VARIABLES = (
    "SHOW {scope} VARIABLES WHERE Variable_name IN ('wait_timeout', 'hostname', 'port', 'wsrep_on', 'read_only', "
    "'super_read_only', 'innodb_read_only', 'transaction_read_only', 'tx_read_only')"
)
_VARIABLES_OF_SERVER = VARIABLES.format(scope="GLOBAL").encode()
_IS_READY = b"SHOW GLOBAL STATUS WHERE Variable_name = 'wsrep_ready'"
_TRANSACTION_READ_ONLY = {"transaction_read_only", "tx_read_only"}
_READ_ONLY = {"read_only", "super_read_only", "innodb_read_only", *_TRANSACTION_READ_ONLY}


@dataclass(frozen=True)
class ServerState:
    """The state of a server, as it says itself."""

    #: As it calls itself: host and port.
    name: str
    #: True if it takes no writes.
    is_read_only: bool
    #: True if the transactions of new sessions take none.
    begins_read_only: bool
    #: True if it answers to statements at all.
    is_ready: bool = True
    #: Seconds; of a session, if it was a session's variables that were asked for.
    wait_timeout: int | None = None

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> ServerState:
        """From the answer to ``VARIABLES``; a proxy's may have less in it."""
        values = {str(name).lower(): str(value) for name, value, *_ in rows}
        is_on = {name for name in _READ_ONLY if values.get(name, "OFF").upper() not in {"OFF", "0", ""}}
        return cls(
            name=f"{values.get('hostname', 'a server')}:{values.get('port', '?')}",
            is_read_only=bool(is_on),
            begins_read_only=not is_on.isdisjoint(_TRANSACTION_READ_ONLY),
            wait_timeout=int(values["wait_timeout"]) if "wait_timeout" in values else None,
        )

    @classmethod
    def asked_of(cls, session: Session, timeout: float = PING_TIMEOUT) -> ServerState | None:
        """Ask the server of an idle session; ``None``: it has not answered, and may still do so."""
        rows = session.ask(_VARIABLES_OF_SERVER, timeout)
        if rows is None:
            return None
        state = cls.of(rows)
        if not any(str(name) == "wsrep_on" and str(value) == "ON" for name, value, *_ in rows):
            return state
        rows = session.ask(_IS_READY, timeout)
        if rows is None:
            return None
        is_ready = all(str(value) == "ON" for _, value, *_ in rows)
        return cls(state.name, state.is_read_only, state.begins_read_only, is_ready)


class Writes:
    """Knowledge of a pool about the writes that its servers take.

    A server that refuses writes, or all, costs one connection: its own. The others are asked whether theirs does. Where
    new connections are refused too, they are lent as they are, since they can read, and one is given up for another after
    a pause, which grows.
    """

    def __init__(self) -> None:
        #: True if the first server took writes; ``None``: unknown. If it took none it is a replica, and whoever
        #: writes there is told so by the server.
        self.are_expected: bool | None = None
        #: ``time.monotonic()``; 0: no server has refused any.
        self._until = 0.0
        self._pause = 0.0
        self._next_attempt = 0.0
        #: The names of the servers that have, of which people have been told; whether they say so themselves, too.
        self._refusing: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"<Writes {'in doubt' if self.are_in_doubt else 'taken'}>"

    @property
    def are_in_doubt(self) -> bool:
        """True if a server has refused one a short while ago."""
        return time.monotonic() < self._until

    def are_refused_by(self, state: ServerState) -> bool:
        """True if a connection to such a server is not what the pool is for."""
        return not state.is_ready or (state.is_read_only and self.are_expected is not False)

    def note_refusal(self, name: str, *, says_so: bool) -> bool:
        """A server has refused a write, or ``says_so`` of itself; whether it is news."""
        now = time.monotonic()
        if now >= self._until:
            self._refusing.clear()
            self._pause = self._next_attempt = 0.0
        self._until = now + LASTS
        is_news = name not in self._refusing
        self._refusing[name] = says_so or self._refusing.get(name, False)
        return is_news

    def note_refusal_of_known(self) -> None:
        """A connection has been refused a write that was lent for want of a better one."""
        self._until = max(self._until, time.monotonic() + LASTS)

    def note_refusal_of_new(self) -> None:
        """A connection that was opened since has been refused too."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._next_attempt = time.monotonic() + self._pause * random.uniform(JITTER, 1)

    def note_taker(self, name: str) -> bool:
        """A server says that it takes writes; whether that is news."""
        self._pause = self._next_attempt = 0.0
        if not self._refusing.get(name):  # it never said anything else, whatever it does
            return False
        del self._refusing[name]
        return True

    def may_attempt(self) -> bool:
        """True if a connection that is refused may be given up for another now; the caller does so."""
        now = time.monotonic()
        if now < self._next_attempt:
            return False
        self._next_attempt = now + FIRST_PAUSE  # until it is known what came of it
        return True


class WriteCare:
    """Keeps connections to servers that take no writes from those who may want to write.

    :param pool_name: for log lines
    :param sessions: the open ones
    :param has_option_files: parameters of the driver's name files, which may have an ``init-command`` in them
    :param can_choose: a connection may be refused at its opening: the pool's queue makes another attempt
    """

    def __init__(self, pool_name: str, sessions: set[Session], *, has_option_files: bool, can_choose: bool) -> None:
        self._pool_name = pool_name
        self._sessions = sessions
        self._has_option_files = has_option_files
        self._can_choose = can_choose
        self.known = Writes()

    def forget(self) -> None:
        """The pool is closed: it may connect to another server from now on."""
        self.known = Writes()

    def note_first(self, state: ServerState) -> None:
        """The first server has told its state: if it takes no writes, it is a replica, and none are expected."""
        if self.known.are_expected is None:
            self.known.are_expected = not state.is_read_only

    def takes_writes(self, session: Session, timeout: float) -> bool | None:
        """Ask a server if it takes writes, or is the replica that it ever was; ``None``: it says nothing."""
        state = ServerState.asked_of(session, timeout)
        if state is None:
            return None
        if self.known.are_refused_by(state):
            self._note_refusal(state.name, "as it says itself", says_so=True)
            return False
        session.writes = EXPECTED
        if self.known.note_taker(state.name):
            say(logging.WARNING, "Pool %s: the server %s takes writes again.", self._pool_name, state.name)
        return True

    def accepts_new(self, session: Session, timeout: float, hopes_until: float) -> bool:
        """Ask a new session if it takes writes; tell if it is to be handed out.

        If its server takes none and others may, those are to be waited for, and the next attempt follows a pause. If none
        does, it can at least read.

        :param timeout: seconds that the server may take to answer
        :param hopes_until: ``time.monotonic()``
        """
        takes_writes = self.takes_writes(session, timeout)
        if takes_writes:
            return True
        session.needs_ping = True
        if takes_writes is False:
            self.known.note_refusal_of_new()
            if time.monotonic() >= hopes_until or not self._have_others_hope(session):
                return True
        return not self._can_choose

    def _have_others_hope(self, session: Session) -> bool:
        """True if there is another session of which it is not known that its server takes no writes."""
        return any(
            other.writes != REFUSED and not ((lease := other.lease) is not None and lease.is_broken)
            for other in self._sessions.copy()
            if other is not session
        )

    def may_find_better(self, session: Session) -> bool:
        """True if a session whose server takes no writes is to be closed for another one."""
        return (self._can_choose and self._have_others_hope(session)) or self.known.may_attempt()

    def note_read_only(self, lease: Lease, error: Exception) -> None:
        """A server has refused a write, or everything: its connection is closed, and the others are asked about theirs."""
        session = lease.session
        if session.writes == REFUSED:
            self.known.note_refusal_of_known()
            lease.is_broken = lease.is_broken or self.known.may_attempt()
            return
        is_replica = self.known.are_expected is False and not is_unready(error)
        if is_replica and not is_about_transaction(error):
            return
        was_broken, lease.is_broken = lease.is_broken, True  # an interrupt may leave the question without its answer
        may_ask = session.observed.is_between_statements()
        state = ServerState.asked_of(session) if may_ask else None
        if is_about_transaction(error) and state is not None and not state.begins_read_only:
            # The session was made so: by its set-up, or by somebody who was not seen, or by its server, before that
            # changed its mind.
            lease.is_broken = was_broken or not self._is_set_up_by_others(session)
            return
        if is_replica and state is not None:
            lease.is_broken = was_broken
            return
        says_so = state is not None and self.known.are_refused_by(state)
        if state is None or is_unready(error) or says_so:
            self._note_refusal("which one, it does not say" if state is None else state.name, error, says_so=says_so)
            for other in self._sessions.copy():
                if other is not session and other.writes != REFUSED:
                    other.needs_ping, other.writes = True, IN_QUESTION

    def _is_set_up_by_others(self, session: Session) -> bool:
        """True if somebody but Django has a say in a session's set-up, and what that is can't be seen."""
        return session.history.set_up_effect is not SessionEffect.CLEAN or self._has_option_files

    def _note_refusal(self, name: str, words: object, *, says_so: bool) -> None:
        if self.known.note_refusal(name, says_so=says_so):
            say(
                logging.WARNING,
                "Pool %s: the server takes no writes (%s: %s); its connections are closed, others stay.",
                self._pool_name,
                name,
                words,
            )
