"""One pool: the connections of this process to one database as one user, behind a pool of SQLAlchemy's."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy.exc
import sqlalchemy.pool
from django.db import OperationalError, connections
from django.utils.connection import ConnectionDoesNotExist
from sqlalchemy import event
from sqlalchemy.util import queue

from . import report
from .errors import PoolTimeout
from .faults import Fault, fault_of
from .house import housekeeper
from .lease import Lease
from .options import PoolOptions
from .pressure import PAUSE_AFTER_TURN, Pressure
from .queue import Asking, Asks, SlotPool, SlotTimeout, TooManyWaiting
from .session import PING_PATIENCE, Farewell, Session
from .sockets import is_patched_by_gevent
from .statements import Verdict
from .transit import PATIENCE as PATIENCE_AT_FORK
from .transit import Transit

if TYPE_CHECKING:
    from .wrapper import PooledDatabaseMixin

logger = logging.getLogger("django_mysqlpool")

#: Seconds that a connection lives at most where neither ``recycle`` nor the server says less.
LONGEST_LIFE = 30 * 60
#: The part of the server's ``wait_timeout`` after which a connection is replaced.
PART_OF_WAIT_TIMEOUT = 0.9
#: Seconds that connecting may take where neither the driver's ``connect_timeout`` nor the pool's ``timeout`` says less.
CONNECT_TIMEOUT = 10


#: Seconds for which a waiter may be overtaken where connections are held for a statement only: to hand each one to a thread
#: that has to be woken first would leave it unused for longer than it is used.
OVERTAKING = 0.1

_READ_ONLY = re.compile(r"read[\s_]+only", re.IGNORECASE)


class Request(Asking):
    """What a thread's checkout is about."""

    __slots__ = ("params", "wrapper")

    def __init__(self, wrapper: PooledDatabaseMixin, params: Mapping[str, Any], timeout: float) -> None:
        super().__init__(time.monotonic() + timeout)
        self.wrapper = wrapper
        self.params = params


class Pool:
    """What the aliases with the same connection parameters and the same options share."""

    def __init__(self, name: str, identity: Mapping[str, Any], options: PoolOptions) -> None:
        self.name = name
        self.identity = identity
        self.options = options
        self.releases_per_transaction = options.release == "transaction"
        self._always_reset = options.reset == "always"
        # (Other threads change these: what goes through them goes through a copy(), which is atomic without a GIL too.)
        self.aliases: set[str] = set()
        self.sessions: set[Session] = set()
        self.generation = 0
        #: What Django reads from the server about the server (``mysql_server_data``), and for which version it holds.
        self.server_facts: dict[str, Any] | None = None
        self.server_version: str | None = None
        #: Seconds that a connection may live, less its jitter.
        self.lifetime = self._lifetime(None)
        #: The error, and when it happened; ``time.monotonic()``.
        self._last_connect_error: tuple[Exception | None, float] = (None, 0.0)
        #: How many connections had to stay between statements, by the reason; where ``release`` is "transaction".
        self.pins: Counter[str] = Counter()
        self.pressure = Pressure()
        # Leases whose wrapper was dropped, under gevent; ``reclaim()`` sees to them.
        self._orphans: deque[Lease] = deque()
        #: Whether it is kept warm: from its first checkout on, until it is closed.
        self.is_in_use = False
        #: In a forked child: this pool is its parent's.
        self.is_abandoned = False
        self._pid = os.getpid()
        farewell = Farewell(self._close_connection)
        self._pool = options.pool_class(self._create, dialect=farewell, **options.arguments)  # type: ignore[arg-type]
        #: The pool, where its class is ours.
        self.slots = slots = self._pool if isinstance(self._pool, SlotPool) else None
        #: The same, where it is its slots that are lent, and not SQLAlchemy's proxies of connections.
        self._lender = slots if slots is not None and not slots.lends_proxies else None
        #: Seconds that a checkout may take.
        self.timeout: float = getattr(self._pool, "_timeout", math.inf)
        self._asks = slots.asks if slots else Asks()
        #: Held while slots change hands, where the pool class is ours.
        self.lock = slots.lock if slots else threading.RLock()
        self._transit = Transit(self.lock)
        self._is_held = False
        if slots:
            slots.is_fit = self._is_fit
            slots.reclaim = self.reclaim
            if self.releases_per_transaction:
                slots.overtaking = OVERTAKING
        else:
            event.listen(self._pool, "checkout", self._before_lending)

    def __repr__(self) -> str:
        return f"<Pool {self.name}: {self.status()}>"

    # Checkout

    def checkout(self, wrapper: PooledDatabaseMixin, params: dict[str, Any]) -> Lease:
        """Lend a live connection to ``wrapper``; where a new one is needed, ``wrapper`` opens it with ``params``.

        Raises ``PoolTimeout`` where none comes free in time, and the driver's error where the server refuses a new one.
        """
        return self.checkout_warm(wrapper) or self._lease_of(self._ask(Request(wrapper, params, self.timeout)), wrapper)

    def checkout_warm(self, wrapper: PooledDatabaseMixin) -> Lease | None:
        """The same where a connection lies ready: neither the server nor another thread is waited for."""
        lender = self._lender
        slot = None if lender is None else lender.lend_idle()
        if lender is None or slot is None:
            return None
        is_fresh = False
        try:
            connection: Any = slot.dbapi_connection
            if connection is not None:
                session: Session = connection.mysqlpool_session
                is_fresh = session.generation == self.generation and session.is_fresh(
                    self.lifetime, self.options.ping_after, time.monotonic()
                )
        finally:
            if not is_fresh:
                lender.take_back(slot)
        return self._lease_of(slot, wrapper) if is_fresh else None

    def _lease_of(self, entry: Any, wrapper: PooledDatabaseMixin) -> Lease:
        session: Session = entry.dbapi_connection.mysqlpool_session
        session.lease = wrapper.reference.lease = lease = Lease(self, session, entry, wrapper)
        self.is_in_use = True
        if housekeeper.thread is None:
            housekeeper.look_after(self)
        return lease

    def _return(self, entry: Any, *, is_fit: bool) -> None:
        if self._lender is not None:
            self._lender.take_back(entry, is_fit=is_fit)
        elif is_fit:
            entry.close()
        else:
            entry.invalidate()

    def _ask(self, asking: Request) -> Any:
        """SQLAlchemy's entry of the pool for a connection: the slot, or a proxy.

        The request may stand in another one of this thread's: the garbage collector runs a user's code wherever it likes.
        """
        asks = self._asks
        outer, asks.now = asks.now, asking
        try:
            return self._lend(asking)
        finally:
            asks.now = outer

    def _lend(self, asking: Request) -> Any:
        """The same; a server that is full is asked again until the deadline."""
        alias = asking.wrapper.alias
        while True:
            try:
                return self._pool.connect() if self._lender is None else self._lender.lend()
            except (SlotTimeout, TooManyWaiting, sqlalchemy.exc.TimeoutError) as error:
                raise self._timeout(asking, error) from None
            except sqlalchemy.exc.InvalidRequestError as error:
                raise OperationalError(
                    f"Alias '{alias}': the server ended every connection that was tried ({error})."
                ) from error
            except asking.wrapper.Database.OperationalError as error:
                if self.slots is None or asking.only_new or fault_of(error) is not Fault.FULL:
                    raise
                if time.monotonic() >= asking.deadline:
                    raise self._timeout(asking, error) from error
            asking.is_first = True

    def _timeout(self, asking: Request, error: Exception) -> PoolTimeout:
        connect_error, when = self._last_connect_error
        happened_meanwhile = when >= asking.deadline - self.timeout
        return report.pool_timeout(self, asking.wrapper.alias, error, connect_error if happened_meanwhile else None)

    def _create(self, record: Any) -> Any:
        """SQLAlchemy's creator."""
        with self._transit.one():
            return self._open(record)

    def _close_connection(self, session: Session, close: Callable[[], None]) -> None:
        """Have ``close`` close a session's connection, which counts for the cap until then."""
        try:
            with self._transit.one():
                close()
        finally:
            self.sessions.discard(session)

    def _open(self, record: Any) -> Any:
        """Open a connection on behalf of the thread that asks."""
        asking = cast("Request", self._asks.now)
        generation = self.generation
        params = self._in_time(asking.params, asking.deadline)
        try:
            connection = asking.wrapper.open_connection(params)
        except Exception as error:
            self._note_connect_error(error, asking.wrapper, params["connect_timeout"])
            raise
        session = Session(connection, record, generation, asking.wrapper.driver)
        try:
            self._note_server_version(connection.get_server_info())
            self.sessions.add(session)
            housekeeper.look_after(self)
            if self.slots is not None:
                self.slots.connected()
        except BaseException:  # an interrupt: SQLAlchemy has not got it, and would not close it
            self.sessions.discard(session)
            session.connection = session.record = session.more_results = None
            connection.close()
            raise
        return connection

    def _in_time(self, params: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Connection parameters whose ``connect_timeout``, in whole seconds, is not beyond the deadline."""
        seconds = min(params.get("connect_timeout") or CONNECT_TIMEOUT, deadline - time.monotonic())
        return {**params, "connect_timeout": max(math.ceil(seconds), 1)}

    def _note_connect_error(self, error: Exception, wrapper: PooledDatabaseMixin, connect_timeout: float) -> None:
        self._last_connect_error = (error, time.monotonic())
        if self.slots is None:
            return
        if fault_of(error) is Fault.FULL:
            self.pressure.rise()
            self.slots.connect_refused()
        else:
            # Those who wait can hope for a connection that is open, for as long as connecting may take; where there is
            # none, they fare as this one did.
            patience = connect_timeout if self.sessions else 0
            self.slots.connect_failed(error, patience if isinstance(error, wrapper.Database.Error) else math.inf)

    def _note_server_version(self, version: str) -> None:
        if version != self.server_version:
            self.server_facts = None
            self.lifetime = self._lifetime(None)
            self.server_version = version

    def _before_lending(self, connection: Any, record: Any, fairy: Any) -> None:
        """SQLAlchemy replaces the connection where this raises."""
        if not self._is_fit(connection):
            raise sqlalchemy.exc.DisconnectionError("the session has ended, or reached the end of its life")

    def _is_fit(self, connection: Any) -> bool:
        """Whether a connection that was given back may be lent again."""
        session: Session = connection.mysqlpool_session
        now = time.monotonic()
        if session.generation != self.generation or session.is_overdue(self.lifetime, now):
            return False
        asking = self._asks.now
        left = math.inf if asking is None else asking.deadline - now
        return self.is_alive(session, max(min(PING_PATIENCE, left), 0))

    def is_alive(self, session: Session, patience: float = PING_PATIENCE) -> bool:
        """Whether a session still lives; where it does not, the others are suspect."""
        if session.is_alive(self.options.ping_after, time.monotonic(), patience):
            return True
        self._suspect_others(session)
        return False

    def is_presentable(self, session: Session) -> bool:
        """Whether an idle session would be lent as far as can be seen without asking the server."""
        return session.generation == self.generation and not session.has_hung_up()

    def is_overdue(self, session: Session, now: float) -> bool:
        """Whether it has reached the end of its life at ``now``."""
        return session.is_overdue(self.lifetime, now)

    def open_one_more(self) -> bool:
        """In the housekeeper's thread: open a connection, to lie idle; ``False`` where there is no room for one.

        Its first borrower sets the session up: what Django and the receivers of its signals then send has no time limit.
        """
        wrapper = next(filter(None, map(self._wrapper_here, sorted(self.aliases.copy()))), None)
        if wrapper is None:
            return False
        asking = Request(wrapper, wrapper.get_connection_params(), self.timeout)
        asking.only_new = True
        try:
            self._return(self._ask(asking), is_fit=True)
        except PoolTimeout:
            return False
        return True

    def _wrapper_here(self, alias: str) -> Any:
        """The calling thread's wrapper for an alias, if this pool still serves it."""
        with suppress(ConnectionDoesNotExist):
            wrapper = connections[alias]
            if getattr(wrapper, "pool", None) is self:
                return wrapper
        return None

    def _suspect_others(self, dead: Session) -> None:
        """The first death makes its contemporaries suspect: each answers a ping before it is lent again."""
        for session in self.sessions.copy():
            session.is_suspect = session is not dead

    def note_server_facts(self, facts: dict[str, Any], wait_timeout: int) -> None:
        """Remember for every wrapper what one has read; ``wait_timeout`` is a session's, in seconds."""
        self.lifetime = self._lifetime(wait_timeout)
        self.server_facts = facts

    def _lifetime(self, wait_timeout: int | None) -> float:
        """Seconds that a connection may live."""
        recycle = self.options.recycle
        if recycle is not None:
            return math.inf if recycle == -1 else recycle
        if wait_timeout is None:
            return LONGEST_LIFE
        return min(LONGEST_LIFE, PART_OF_WAIT_TIMEOUT * wait_timeout)

    # Checkin

    def checkin(self, lease: Lease, params: Callable[[], dict[str, Any]], *, discard: bool) -> None:
        """Take a connection back, clean; or close it: where ``discard`` says so or it can't be cleaned.

        ``params`` is called for the connection parameters if they are needed. Never raises: whoever gives a connection
        back is done with it.
        """
        session = lease.session
        keep = False
        try:
            keep = (
                not (discard or lease.is_lost)
                and session.generation == self.generation
                and not (self.pressure.until and self._must_yield(session))
                and session.clean(params, always_reset=self._always_reset)
            )
        except Exception as error:
            logger.info("Pool %s: a connection could not be cleaned and is closed: %s", self.name, error)
            if fault_of(error) is Fault.FULL:  # at its account's limit even change_user is refused
                self.pressure.rise()
        finally:  # after an interrupt too, such as gevent's Timeout
            self._end_lease(session, keep_in_scope=discard)
            self._return(lease.entry, is_fit=keep)

    def _end_lease(self, session: Session, *, keep_in_scope: bool = False) -> Lease | None:
        lease, session.lease = session.lease, None
        if lease is not None:
            lease.is_over = True
            lease.wrapper.lease = None
            if lease.is_reported:
                report.leak_has_ended(lease)
            # Closed inside atomic(), a wrapper stays in that block: its scope has still to end it.
            if lease.scope is not None and not keep_in_scope:
                lease.scope.discard(lease)
        return lease

    def _must_yield(self, session: Session) -> bool:
        """Whether the server's full house demands that a neighbour gets a turn."""
        if not self.pressure.wants_turn_of(session.born):
            return False
        if self.slots is not None:
            self.slots.connect_refused(first=PAUSE_AFTER_TURN, longest=PAUSE_AFTER_TURN)
        return True

    def note_error(self, lease: Lease, error: Exception) -> None:
        """A statement has failed: decide whether the connection, or all of them, are of further use."""
        fault = fault_of(error, asked_for_read_only=self._may_be_read_only(lease))
        if not lease.session.connection.open:  # PyMySQL closes one that it has lost track of
            fault = Fault.LOST
        told = self._ask_hook(error, lease.alias)
        if told is False or (told is None and fault not in (Fault.LOST, Fault.READ_ONLY)):
            return
        lease.is_lost = True
        if fault is Fault.LOST:
            self._suspect_others(lease.session)
        elif fault is Fault.READ_ONLY and lease.session.generation == self.generation:
            logger.warning("Pool %s: the server takes no writes (%s); its connections are replaced.", self.name, error)
            self.generation += 1

    def _may_be_read_only(self, lease: Lease) -> bool:
        """Whether the session may have asked for read-only transactions: by a statement, or when it was set up."""
        return (
            lease.session.verdict is not Verdict.CLEAN
            or _READ_ONLY.search(self.identity.get("init_command", "")) is not None
        )

    def _ask_hook(self, error: Exception, alias: str) -> bool | None:
        hook = self.options.discard_on_error
        if hook is None:
            return None
        try:
            return hook(error, alias)
        except Exception:
            logger.exception("Pool %s: discard_on_error failed, and is not heeded.", self.name)
            return None

    def reclaim(self, *, spare: threading.Thread | None = None) -> None:
        """Take back what threads that have ended left out, but for the thread to ``spare``."""
        with suppress(IndexError):
            while self._orphans:
                self._close_orphan(self._orphans.popleft())
        for lease in self.leases():
            if lease.thread is spare or not lease.is_of_a_dead_thread():
                continue
            wrapper = lease.wrapper()
            # Another thread may be doing the same: the housekeeper, or one that waits.
            if wrapper is not None and wrapper.use.acquire(blocking=False):
                try:
                    self._take_from_dead(lease, wrapper)
                finally:
                    wrapper.use.release()

    def _take_from_dead(self, lease: Lease, wrapper: PooledDatabaseMixin) -> None:
        if lease.is_over:
            return
        self._tell_lost(lease)
        # To close it ends its transaction too, and never waits for a server that has gone silent.
        lease.is_lost |= lease.session.needs_server_to_clean()
        wrapper.take_back(lease, by_force=True)

    def leases(self) -> list[Lease]:
        """Those of the connections that are out."""
        return [lease for session in self.sessions.copy() if (lease := session.lease) is not None]

    def _tell_lost(self, lease: Lease) -> None:
        # In a scope, an ended thread's connection goes back with the others at the scope's end: nobody has forgotten it.
        if lease.scope is None:
            report.forgotten(lease)

    def take_from_nobody(self, lease: Lease) -> None:
        """Close what a wrapper had that was dropped without being closed; it may be the garbage collector that calls."""
        # Of a parent's nothing is closed here, and nobody has forgotten what a thread still held when the process ended.
        if os.getpid() != self._pid or sys.is_finalizing():
            return
        if is_patched_by_gevent():
            # This may be gevent's hub, where nothing may wait; and an interrupt would be lost here, as any exception is.
            self._orphans.append(lease)
        else:
            self._close_orphan(lease)

    def _close_orphan(self, lease: Lease) -> None:
        self._end_lease(lease.session)
        self._tell_lost(lease)
        self._return(lease.entry, is_fit=False)

    def close(self) -> None:
        """Close what is idle now, and what is out at its checkin; the pool opens new connections as they are needed."""
        self.is_in_use = False
        self.generation += 1
        if isinstance(self._pool, SlotPool):
            self._pool.close_idle()
            return
        if isinstance(self._pool, sqlalchemy.pool.QueuePool):
            self._close_queue(self._pool)
            return
        for session in self.sessions.copy():
            if session.lease is None:
                session.record.close()

    def _close_queue(self, pool: sqlalchemy.pool.QueuePool) -> None:
        """Close what is idle in a QueuePool of the user's own; its places stay, empty."""
        records = []
        with suppress(queue.Empty):
            while True:
                records.append(pool._pool.get(block=False))
        for record in records:
            record.close()
            pool._do_return_conn(record)

    def hold_for_fork(self) -> None:
        """Take the lock, when nothing is being opened or closed.

        Not for ever: a thread may hold it and wait for another pool's, where the garbage collector returns a connection.
        """
        self._is_held = self.lock.acquire(timeout=PATIENCE_AT_FORK)
        if self._is_held:
            self._transit.stop()

    def release_after_fork(self) -> None:
        """In the parent: go on."""
        if self._is_held:
            self._transit.resume()
            self.lock.release()

    def abandon(self) -> None:
        """In a forked child: leave the pool to its parent. A thread that held its lock does not exist here."""
        self.is_abandoned = True
        self.lock = threading.RLock()
        if isinstance(self._pool, SlotPool):
            self._pool.lock = self.lock

    # Telling

    @property
    def cap(self) -> int | None:
        """The most connections that this process may have open at once; ``None``: no limit."""
        pool = self._pool
        if isinstance(pool, SlotPool):
            return pool.cap
        if isinstance(pool, (sqlalchemy.pool.StaticPool, sqlalchemy.pool.AssertionPool)):
            return 1
        if isinstance(pool, sqlalchemy.pool.QueuePool):
            return pool.size() + pool._max_overflow if pool._max_overflow >= 0 else None
        return None

    def status(self) -> dict[str, Any]:
        """The numbers of this moment, as ``pool_status()`` shows them."""
        return report.status(self, self._pool)
