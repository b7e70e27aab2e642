"""One pool: the connections of this process to one database as one user.

A checkout is read from ``checkout()`` on, and a checkin from ``checkin()`` on.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from threading import current_thread, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import sqlalchemy.exc
from django.db import OperationalError

from django_mysqlpool.mysqlpool.compat import active_threads
from django_mysqlpool.mysqlpool.errors import PoolTimeout
from django_mysqlpool.mysqlpool.log import here, say, unsaid

from . import events, reports
from .cleaning import clean
from .connection import Lease, Session
from .connector import Connector, ConnectRequest
from .events import observers
from .faults import Fault, fault_of
from .foreign import make_source
from .history import BOUNDS
from .liveness import Liveness
from .numbers import status_of
from .pressure import Pressure
from .reclaim import Reclaimer
from .server import ServerFacts
from .states import READY, RETURNED, CloseReason
from .statistics import Statistics
from .waiters import QueueFull, SlotTimeout

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.options import PoolOptions

    from .borrowing import Borrower, PoolAliases, Upkeep

# (To look it up in the dict at each checkin would take longer.)
on_checkin = observers["checkin"]


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
        self.statistics = Statistics(partial(events.emit, self))
        self.pressure = Pressure()
        #: It is kept warm: from its first checkout on, until it is closed.
        self.is_in_use = False
        #: It is the parent's, in a forked child, or forgotten: borrowers look for another pool.
        self.is_abandoned = False
        self.connector = Connector(
            name,
            self.server,
            self.pressure,
            statistics=self.statistics,
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
            self.statistics.note_reclaimed,
            lambda: self.statistics.is_counting_here,
            always_reset=options.reset == "always",
        )
        self.source = make_source(options, self.connector.create, self.connector.close_session)
        self.connector.attach(self.source, identity)
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
        stray = borrower.reference.lease
        if stray is not None:  # an interrupt has lost it; it has a slot, perhaps the only one
            stray.pool.reclaimer.close_stray(stray)
        request = ConnectRequest(monotonic() + self.source.timeout, borrower=borrower, params=params)
        was_held = here.is_held
        try:
            here.is_held = True  # the wrapper is in the middle of connecting
            entry = self.acquire(request)
            lease = self._lease(entry.dbapi_connection.mysqlpool_session, entry, borrower, monotonic())
            self.statistics.note_wait(lease.alias, monotonic() - request.started_at, has_waited=request.has_waited)
            return lease
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
            if not is_fresh:
                return None
            lease = self._lease(session, entry, borrower, now)
            session.history.usage.warm_checkouts += 1
            return lease
        finally:
            self._in_transit.discard(transit)

    def _lease(self, session: Session, entry: Any, borrower: Borrower, now: float) -> Lease:
        reference = borrower.reference
        stray = reference.lease
        if stray is not None:
            stray.pool.reclaimer.close_stray(stray)
        usage = session.history.usage
        me = get_ident()
        lease = Lease(self, session, entry, reference, active_threads.get(me) or current_thread(), me, now)
        # Without a call in between, at which an interrupt could come, or another thread with the same connection.
        outer, session.lease, reference.lease = session.lease, lease, lease
        usage.checkouts += 1
        if outer is not None:  # a pool of one connection lends it twice
            usage.checkins += 1
        self.is_in_use = True
        if self._upkeep.thread is None:
            self._upkeep.look_after(self)
        return lease

    def acquire(self, request: ConnectRequest) -> Any:
        """Acquire an entry of the source's; ask a server that is full again until the deadline."""
        while True:
            try:
                entry = self.source.acquire(request)
                if not request.is_refused:
                    return entry
                request.is_refused = False
                entry.dbapi_connection.mysqlpool_session.history.note_end("read_only")
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
        timeout = reports.pool_timeout(
            request.borrower.alias,
            self.name,
            reports.reason_for(error, self.source.timeout),
            self.status(),
            self.reclaimer.leases(),
            last_connect_error=connect_error if when >= request.deadline - self.source.timeout else None,
            with_stacks=self.options.leak_after is not None,
        )
        if not request.is_maintenance:
            self.statistics.note_timeout(timeout, "refusals" if isinstance(error, QueueFull) else "timeouts")
            if unsaid and self._upkeep.thread is None:  # no connection may be open that would be returned
                self._upkeep.look_after(self)
        return timeout

    # Checkin

    def checkin(self, lease: Lease, borrower: Borrower, discard: bool) -> None:
        """Check a connection in, clean; or close it.

        Its holder is done with it and hears of no error, but for an interrupt. (Celery's time limit is an ``Exception``.)

        :param borrower: tells how to connect if the session is to be reset
        :param discard: close it; its lease stays in its scope, which has still to end Django's block
        """
        session, keep = lease.session, False
        history = session.history
        try:
            if discard or lease.is_broken:
                history.note_end("discarded")  # if nobody knows better
            elif session.generation != self.connector.generation:
                history.note_end(self.connector.reason_of_generation)
            elif self.pressure.until and self.connector.should_yield(session):
                history.note_end("yielded")
            elif self.source.is_resized and self.source.surplus:
                history.note_end("surplus")
            else:
                keep = clean(session, borrower, self.options.reset == "always", self.statistics)
        except session.driver.error_class as error:
            say(logging.INFO, "Pool %s: a connection could not be cleaned and is closed: %s", self.name, error)
            fault = fault_of(error)
            history.note_end("lost" if fault is Fault.LOST else "reset_failed")
            if fault is Fault.FULL:  # at its account's limit even change_user is refused
                self.pressure.rise()
        except BaseException:  # an interrupt, such as gevent's Timeout
            history.note_end("interrupted")
            raise
        finally:
            self._end(lease, keep, discard)

    def _end(self, lease: Lease, keep: bool, keep_in_scope: bool = False) -> None:
        """End a lease, and release its slot; unless ``keep``, its connection is closed."""
        session = lease.session
        try:
            self._in_transit.add(lease)
            usage = session.history.usage
            seconds = (session.last_used if keep else monotonic()) - lease.checked_out_at
            bucket = bisect_left(BOUNDS, seconds)
            current, session.lease = session.lease, None
            if current is not None:
                # Without a call in between, at which an interrupt could come.
                current.state, current.statement, current.borrower.lease = RETURNED, None, None
                usage.checkins += 1
                usage.use_sum += seconds
                usage.use_counts[bucket] += 1
                if on_checkin:
                    events.emit(self, "checkin", lease=current, seconds=seconds, keep=keep)
                if reports.leaking:
                    reports.note_return(current)
                if current.scope is not None and not keep_in_scope:
                    current.scope.discard(current)
            self.source.release(lease.entry, keep)
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

    # Reclaiming

    def reclaim(self, *, spare: threading.Thread | None = None) -> None:
        """Reclaim connections that nobody will return, except those of the thread to ``spare``."""
        self.reclaimer.reclaim(spare=spare)
        self.source.replace_lost(self._in_transit)

    # The pool as a whole

    def close(self, reason: CloseReason = "pool_closed") -> None:
        """Close what is idle now, and what is out at its checkin; the pool opens new connections as they are needed."""
        self.is_in_use = False
        self._begin_generation(reason)
        self.source.close_idle(self.sessions.copy(), reason)

    def drain(self) -> None:
        """Renew every connection: what is idle by maintenance, or the next borrower, and what is out at its checkin."""
        self._begin_generation("drained")

    def _begin_generation(self, reason: CloseReason) -> None:
        self.connector.reason_of_generation = reason
        self.connector.generation += 1
        # What is connected to next may be another server.
        self.server.data = None
        self.connector.writes.forget()

    def abandon(self) -> None:
        """In a forked child: leave the pool to its parent."""
        self.is_abandoned = True
        self.connector.stop_in_child()

    def status(self) -> dict[str, Any]:
        """The numbers of this moment, as ``pool_status()`` shows them."""
        return status_of(self)
