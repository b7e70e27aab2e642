"""One pool: the connections of this process to one database as one user.

A checkout is read from ``checkout()`` on, and a checkin from ``checkin()`` on.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from threading import current_thread, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import sqlalchemy.exc
from django.db import OperationalError

from django_mysqlpool.mysqlpool.errors import PoolTimeout
from django_mysqlpool.mysqlpool.log import here, say

from . import reports
from .cleaning import clean
from .connection import Lease, Session
from .connector import Connector, ConnectRequest, PoolForgotten
from .faults import Fault, fault_of
from .foreign import make_source
from .liveness import Liveness
from .locks import acquire_if_free
from .pressure import Pressure
from .reclaim import Reclaimer
from .server import ServerFacts
from .states import READY, RETURNED
from .waiters import QueueFull, SlotTimeout

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.options import PoolOptions

    from .borrowing import Borrower, PoolAliases, Upkeep


class Pool:
    """The connections that aliases with the same connection parameters and the same options share.

    :param name: for people
    :param identity: the connection parameters, and what else tells pools apart
    :param options: the checked options
    :param aliases: the aliases that lead here
    :param upkeep: the maintenance of all pools
    :param ask_hook: asks the option ``discard_on_error`` about an error of an alias; ``None``: it does not say
    """

    def __init__(
        self,
        name: str,
        identity: Mapping[str, Any],
        options: PoolOptions,
        aliases: PoolAliases,
        upkeep: Upkeep,
        ask_hook: Callable[[Exception, str], bool | None],
    ) -> None:
        self.name = name
        self.identity = identity
        self.options = options
        self.aliases = aliases
        self._upkeep = upkeep
        self.server = ServerFacts(options.recycle)
        #: How many connections had to stay between statements, by the reason; if ``release`` is "transaction".
        self.pins: Counter[str] = Counter()
        self.pressure = Pressure()
        #: It is kept warm: from its first checkout on, until it is closed.
        self.is_in_use = False
        #: It is the parent's, in a forked child, or forgotten: borrowers look for another pool.
        self.is_abandoned = False
        self.connector = Connector(
            name,
            identity,
            self.server,
            self.pressure,
            hand_over=upkeep.hand_over,
            on_open=lambda: upkeep.look_after(self),
        )
        self.liveness = Liveness(
            identity,
            self.connector,
            self.server,
            ping_after=options.ping_after,
            ask_hook=ask_hook,
        )
        #: An object for each slot that a thread has in hand, of which neither the queue nor a lease tells. The thread may
        #: stand still for as long as a busy machine likes, so no time tells that a slot is lost; nor does the end of its
        #: frame, which whoever keeps an exception keeps, with all that it holds.
        self._in_transit: set[object] = set()
        self.reclaimer = Reclaimer(
            self.connector.sessions,
            self._discard,
            self.connector.close_session_at_once,
            always_reset=options.reset == "always",
        )
        self.source = make_source(options, self.connector.create, self.connector.close_session)
        self.connector.attach(self.source)
        self.source.attach(self.liveness, self.connector, self.reclaim)

    def __repr__(self) -> str:
        return f"<Pool {self.name}: {self.status() if 'source' in vars(self) else 'being made'}>"

    @property
    def sessions(self) -> set[Session]:
        """The open ones. Other threads change the set, so iterate over a copy."""
        return self.connector.sessions

    @property
    def cap(self) -> int | None:
        """The most connections that this process may have open at once; ``None``: no limit, or none that is known."""
        return self.source.cap

    # Checkout

    def checkout(self, borrower: Borrower, params: dict[str, Any]) -> Lease:
        """Hand out a live connection.

        :param borrower: opens a new connection if one is needed
        :param params: the connection parameters for that
        :raises PoolTimeout: if none came free in time
        :raises PoolForgotten: if the pool opens no connection any more
        """
        lease = self.checkout_idle(borrower)
        if lease is not None:
            return lease
        request = ConnectRequest(monotonic() + self.source.timeout, borrower=borrower, params=params)
        was_held = here.is_held
        try:
            here.is_held = True  # the wrapper is in the middle of connecting
            return self._lease(self._acquire(request), borrower)
        finally:
            request.is_finished, here.is_held = True, was_held

    def checkout_idle(self, borrower: Borrower) -> Lease | None:
        """Hand out an idle connection, if that takes a wait neither for the server nor for another thread."""
        transit = object()
        try:
            self._in_transit.add(transit)
            entry = self.source.acquire_idle()
            if entry is None:
                return None
            is_fresh = False
            try:
                connection: Any = entry.dbapi_connection
                if connection is not None:
                    session: Session = connection.mysqlpool_session
                    origin, now = session.origin, monotonic()
                    is_fresh = not (
                        session.generation != self.connector.generation
                        or session.state > READY
                        or session.needs_ping
                        or now - session.last_used > self.options.ping_after
                        or now - origin.created_at > self.server.lifetime * origin.jitter
                        or session.socket.has_pending_data()
                    )
            finally:
                if not is_fresh:
                    self.source.release(entry)
            return self._lease(entry, borrower) if is_fresh else None
        finally:
            self._in_transit.discard(transit)

    def _lease(self, entry: Any, borrower: Borrower) -> Lease:
        reference = borrower.reference
        stray = reference.lease
        if stray is not None:
            stray.pool.reclaimer.close_stray(stray)
        session: Session = entry.dbapi_connection.mysqlpool_session
        session.lease = reference.lease = lease = Lease(
            self, session, entry, reference, current_thread(), get_ident(), monotonic()
        )
        self.is_in_use = True
        if self._upkeep.thread is None:
            self._upkeep.look_after(self)
        return lease

    def _acquire(self, request: ConnectRequest) -> Any:
        """Acquire an entry of the source's; ask a server that is full again until the deadline."""
        while True:
            try:
                entry = self.source.acquire(request)
                if not request.is_refused:
                    return entry
                request.is_refused = False
                self.source.release(entry, keep=False)
                if request.needs_new or request.seconds_left() <= 0:
                    raise SlotTimeout
            except (SlotTimeout, QueueFull) as error:
                raise self._timeout(request, error) from None
            except sqlalchemy.exc.InvalidRequestError as error:
                raise OperationalError(
                    f"Alias '{request.borrower.alias}': the server ended every connection that was tried ({error})."
                ) from error
            except request.borrower.driver.operational_error as error:
                if not self.source.has_queue or request.needs_new or fault_of(error) is not Fault.FULL:
                    raise
                if request.seconds_left() <= 0:
                    raise self._timeout(request, error) from error
            request.is_first = True

    def _timeout(self, request: ConnectRequest, error: Exception) -> PoolTimeout:
        connect_error, when = self.connector.last_connect_error
        return reports.pool_timeout(
            request.borrower.alias,
            self.name,
            reports.reason_for(error, self.source.timeout),
            self.status(),
            self.reclaimer.leases(),
            last_connect_error=connect_error if when >= request.deadline - self.source.timeout else None,
            with_stacks=self.options.leak_after is not None,
        )

    # Checkin

    def checkin(self, lease: Lease, params: Callable[[], dict[str, Any]], *, discard: bool) -> None:
        """Check a connection in, clean; or close it.

        Its holder is done with it and hears of no error, but for an interrupt. (Celery's time limit is an ``Exception``.)

        :param params: tells the connection parameters if they are needed
        :param discard: close it
        """
        session = lease.session
        keep = False
        try:
            keep = (
                not (discard or lease.is_broken)
                and session.generation == self.connector.generation
                and not (self.pressure.until and self.connector.should_yield(session))
                and clean(session, params, always_reset=self.options.reset == "always")
            )
        except session.driver.error_class as error:
            say(logging.INFO, "Pool %s: a connection could not be cleaned and is closed: %s", self.name, error)
            if fault_of(error) is Fault.FULL:  # at its account's limit even change_user is refused
                self.pressure.rise()
        finally:  # after an interrupt too, such as gevent's Timeout
            self._end(lease, keep=keep, keep_in_scope=discard)

    def _end(self, lease: Lease, *, keep: bool, keep_in_scope: bool = False) -> None:
        """End a lease, and release its slot; unless ``keep``, its connection is closed."""
        session = lease.session
        try:
            self._in_transit.add(lease)
            current, session.lease = session.lease, None
            if current is not None:
                # Without a call in between, at which an interrupt could come.
                current.state, current.statement, current.borrower.lease = RETURNED, None, None
                if reports.leaking:
                    reports.note_return(current)
                # Closed inside atomic(), a wrapper stays in that block: its scope has still to end it.
                if current.scope is not None and not keep_in_scope:
                    current.scope.discard(current)
            self.source.release(lease.entry, keep=keep)
        finally:
            self._in_transit.discard(lease)

    def _discard(self, lease: Lease) -> None:
        """End a lease that nobody returns, and close its connection."""
        if lease.session.lease is not lease:
            # Its end was interrupted, and its connection may be another's by now; LostSlots finds it if it is not.
            lease.state, lease.borrower.lease = RETURNED, None
            reports.leaking.discard(lease)
            return
        self._end(lease, keep=False)

    def count_pin(self, reason: str) -> None:
        """A connection had to stay between statements."""
        with self.source.lock:
            self.pins[reason] += 1

    # Reclaiming

    def reclaim(self, *, spare: threading.Thread | None = None) -> None:
        """Reclaim connections that nobody will return, except those of the thread to ``spare``."""
        self.reclaimer.reclaim(spare=spare)
        self.source.replace_lost(self._in_transit)

    # The pool as a whole

    def open_one_more(self) -> bool:
        """Open a connection, to lie idle.

        Its first borrower sets the session up: what Django and the receivers of its signals then send has no time limit.

        :returns: ``False`` if there is no room for one, or nobody who would want it
        """
        self.connector.hand_over()
        found = self.aliases.borrower()
        if found is None:
            return False
        borrower, params = found
        request = ConnectRequest(monotonic() + self.source.timeout, borrower=borrower, params=params)
        request.needs_new = request.is_maintenance = True
        try:
            self.source.release(self._acquire(request))
        except (PoolTimeout, PoolForgotten):
            return False
        finally:
            request.is_finished = True
        return True

    def close(self) -> None:
        """Close what is idle now, and what is out at its checkin; the pool opens new connections as they are needed."""
        self.is_in_use = False
        self.connector.generation += 1
        # What is connected to next may be another server.
        self.server.data = None
        self.connector.writes.forget()
        self.source.close_idle(self.sessions.copy())

    def forget(self) -> bool:
        """Abandon the pool, if there is no connection here, and nobody waits for one; nothing is waited for."""
        held: list[threading.RLock] = []
        try:
            if not acquire_if_free(self.source.lock, held):
                return False
            is_empty = not (self.sessions or self.connector.barrier.is_busy or self.source.waiting())
            if is_empty:
                self.is_abandoned = self.connector.is_stopped = True
            return is_empty
        finally:
            for lock in held:
                lock.release()

    def abandon(self) -> None:
        """In a forked child: leave the pool to its parent."""
        self.is_abandoned = True
        self.connector.stop_in_child()

    def status(self) -> dict[str, Any]:
        """The numbers of this moment, as ``pool_status()`` shows them."""
        sessions = self.sessions.copy()
        out = sum(session.lease is not None for session in sessions)
        opening = len(self.connector.opening)  # after the sessions: what has just been opened is counted once
        return {
            "aliases": sorted(self.aliases.names()),
            "pool_class": self.options.pool_class_name,
            "cap": self.source.cap,
            "size": self.source.size(),
            "open": len(sessions),
            "idle": len(sessions) - out,
            "out": out,
            "opening": opening,
            "waiting": self.source.waiting(),
            "pins": dict(self.pins),
        }
