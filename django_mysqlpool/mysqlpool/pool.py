"""One pool: the connections of this process to one database as one user, behind a pool of SQLAlchemy's."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy.exc
import sqlalchemy.pool
from django.db import OperationalError
from sqlalchemy import event
from sqlalchemy.util import queue

from .errors import PoolTimeout
from .lease import Lease
from .options import PoolOptions
from .queue import SlotPool, SlotTimeout, TooManyWaiting
from .session import Farewell, Session, can_reset

if TYPE_CHECKING:
    from .wrapper import PooledDatabaseMixin

logger = logging.getLogger("django_mysqlpool")

#: Seconds that a connection lives at most where neither ``recycle`` nor the server says less.
LONGEST_LIFE = 30 * 60
#: The part of the server's ``wait_timeout`` after which a connection is replaced.
PART_OF_WAIT_TIMEOUT = 0.9


class Pool:
    """What the aliases with the same connection parameters and the same options share."""

    def __init__(self, name: str, identity: Mapping[str, Any], options: PoolOptions) -> None:
        self.name = name
        self.identity = identity
        self.options = options
        self.aliases: set[str] = set()
        self.sessions: set[Session] = set()
        self.generation = 0
        #: What Django reads from the server about the server (``mysql_server_data``), and for which version it holds.
        self.server_facts: dict[str, Any] | None = None
        self.server_version: str | None = None
        #: Seconds that a connection may live, less its jitter.
        self.lifetime = self._lifetime(None)
        self._last_connect_error: Exception | None = None
        #: In a forked child: this pool is its parent's.
        self.is_abandoned = False
        self._asking = threading.local()
        self._pid = os.getpid()
        self._pool = options.pool_class(self._open, dialect=Farewell(), **options.arguments)  # type: ignore[arg-type]
        slots = self._pool if isinstance(self._pool, SlotPool) else None
        #: Held while slots change hands, where the pool class is ours.
        self.lock = slots.lock if slots else threading.RLock()
        self._trim = slots.trim if slots else None
        if slots:
            slots.is_fit = self._is_fit
            slots.reclaim = self._reclaim
            slots.on_return = self._on_checkin
        else:
            event.listen(self._pool, "checkout", self._before_lending)
            event.listen(self._pool, "checkin", self._on_checkin)
        event.listen(self._pool, "close", self._on_close)

    def __repr__(self) -> str:
        return f"<Pool {self.name}: {self.status()}>"

    # Checkout

    def checkout(self, wrapper: PooledDatabaseMixin, params: dict[str, Any]) -> tuple[Lease, Any]:
        """Lend a live connection to ``wrapper``; where a new one is needed, ``wrapper`` opens it with ``params``.

        With the lease comes SQLAlchemy's proxy, to be kept and returned with it: losing the last reference to that one is
        an implicit, and unclean, checkin.

        Raises ``PoolTimeout`` where none comes free in time, and the driver's error where the server refuses a new one.
        """
        self._asking.now = (wrapper, params)
        try:
            fairy = self._pool.connect()
        except (SlotTimeout, TooManyWaiting, sqlalchemy.exc.TimeoutError) as error:
            raise self._timeout(wrapper.alias, error) from None
        except sqlalchemy.exc.InvalidRequestError as error:
            raise OperationalError(
                f"Alias '{wrapper.alias}': the server ended every connection that was tried ({error})."
            ) from error
        finally:
            del self._asking.now
        session: Session = fairy.dbapi_connection.mysqlpool_session  # type: ignore[union-attr]
        session.lease = lease = Lease(self, session, wrapper.alias, wrapper.reference, wrapper.use)
        return lease, fairy

    def _open(self, record: Any) -> Any:
        """SQLAlchemy's creator: open a connection on behalf of the thread that asks."""
        wrapper, params = self._asking.now
        generation = self.generation
        try:
            connection = wrapper.open_connection(params)
        except Exception as error:
            self._last_connect_error = error
            raise
        self._last_connect_error = None
        self._note_server_version(connection.get_server_info())
        self.sessions.add(Session(connection, record, generation))
        return connection

    def _note_server_version(self, version: str) -> None:
        if version != self.server_version:
            self.server_facts = None
            self.lifetime = self._lifetime(None)
            self.server_version = version

    def _before_lending(self, connection: Any, record: Any, fairy: Any) -> None:
        """SQLAlchemy replaces the connection where this raises."""
        if connection.mysqlpool_session.last_used is not None and not self._is_fit(connection):
            raise sqlalchemy.exc.DisconnectionError("the session has ended, or reached the end of its life")

    def _is_fit(self, connection: Any) -> bool:
        """Whether a connection that was given back may be lent again."""
        session: Session = connection.mysqlpool_session
        now = time.monotonic()
        if session.generation != self.generation or session.is_overdue(self.lifetime, now):
            return False
        if session.is_alive(self.options.ping_after, now):
            return True
        self._suspect_others(session)
        return False

    def _suspect_others(self, dead: Session) -> None:
        """The first death makes its contemporaries suspect: each answers a ping before it is lent again."""
        for session in tuple(self.sessions):
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

    def checkin(self, lease: Lease, fairy: Any, params: Callable[[], dict[str, Any]], *, discard: bool) -> None:
        """Take a connection back, clean; or close it: where ``discard`` says so or it can't be cleaned.

        ``params`` is called for the connection parameters if they are needed. Never raises: whoever gives a connection
        back is done with it.
        """
        session = lease.session
        keep = False
        if not discard and session.generation == self.generation:
            try:
                keep = self._clean(session, params)
            except Exception as error:
                logger.info("Pool %s: a connection could not be cleaned and is closed: %s", self.name, error)
        self._end_lease(session, keep_in_scope=discard)
        if keep:
            fairy.close()
            if self._trim is not None:
                self._trim()
        else:
            fairy.invalidate()

    def _end_lease(self, session: Session, *, keep_in_scope: bool = False) -> Lease | None:
        lease, session.lease = session.lease, None
        if lease is not None:
            lease.is_over = True
            # Closed inside atomic(), a wrapper stays in that block: its scope has still to end it.
            if lease.scope is not None and not keep_in_scope:
                lease.scope.discard(lease)
        return lease

    def _clean(self, session: Session, params: Callable[[], dict[str, Any]]) -> bool:
        always = self.options.reset == "always"
        if not session.verdict and not always:
            return session.clean(None, always_reset=False)
        values = params()
        return session.clean(values if can_reset(values) else None, always_reset=always)

    def _reclaim(self) -> None:
        """Take back what threads that have ended left out."""
        for session in tuple(self.sessions):
            lease = session.lease
            if lease is not None and not lease.thread.is_alive():
                wrapper = lease.wrapper()
                if wrapper is not None:
                    self._tell_lost(lease)
                    wrapper.take_back(lease, by_force=True)

    def _tell_lost(self, lease: Lease) -> None:
        # In a scope, an ended thread's connection goes back with the others at the scope's end: nobody has forgotten it.
        if lease.scope is None:
            logger.warning(
                "A connection of alias '%s' was never given back by thread '%s'; what it left open is rolled back.",
                lease.alias,
                lease.thread.name,
            )

    def _on_checkin(self, connection: Any, record: Any) -> None:
        """Close what comes back without a checkin: its wrapper was dropped, and the garbage collector found it."""
        if connection is None or connection.mysqlpool_session.lease is None or os.getpid() != self._pid:
            return
        lease = self._end_lease(connection.mysqlpool_session)
        if lease is not None:
            self._tell_lost(lease)
            record.invalidate()

    def _on_close(self, connection: Any, record: Any) -> None:
        self.sessions.discard(connection.mysqlpool_session)

    def close(self) -> None:
        """Close what is idle now, and what is out at its checkin; the pool opens new connections as they are needed."""
        self.generation += 1
        if isinstance(self._pool, SlotPool):
            self._pool.close_idle()
            return
        if isinstance(self._pool, sqlalchemy.pool.QueuePool):
            self._close_queue(self._pool)
            return
        for session in tuple(self.sessions):
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

    @property
    def _size(self) -> int | None:
        size = getattr(self._pool, "size", None)
        return size() if callable(size) else size

    def status(self) -> dict[str, Any]:
        """The numbers of this moment, as ``pool_status()`` shows them."""
        sessions = tuple(self.sessions)
        out = sum(session.lease is not None for session in sessions)
        return {
            "aliases": sorted(self.aliases),
            "pool_class": self.options.pool_class_name,
            "cap": self.cap,
            "size": self._size,
            "open": len(sessions),
            "idle": len(sessions) - out,
            "out": out,
            "waiting": self._pool.waiting() if isinstance(self._pool, SlotPool) else 0,
        }

    def _timeout(self, alias: str, error: Exception) -> PoolTimeout:
        status = self.status()
        pool = self._pool
        timeout = getattr(pool, "_timeout", None)
        if isinstance(error, TooManyWaiting):
            reason = f"max_waiting = {pool.max_waiting} threads wait for one already"  # type: ignore[attr-defined]
        else:
            reason = f"none came free within timeout = {timeout:g} s"
        sentences = [
            f"No connection for alias '{alias}' (pool {self.name}): {reason}.",
            f"The cap is {status['cap']}: {status['out']} out, {status['idle']} idle, {status['waiting']} waiting.",
        ]
        holders = self._holders()
        if holders:
            sentences.append(f"Held by {', '.join(holders)}.")
        if self._last_connect_error is not None:
            sentences.append(f"The last attempt to connect failed: {self._last_connect_error}.")
        sentences.append(
            "Give connections back sooner (ConnectionReleaseMiddleware, auto_close_db), or raise pool_size or "
            "max_overflow in OPTIONS['pool'], as far as the server's max_connections allows."
        )
        return PoolTimeout(" ".join(sentences))

    def _holders(self, at_most: int = 10) -> list[str]:
        """Threads and how long they have had their connection, the longest first."""
        now = time.monotonic()
        leases = sorted((s.lease for s in tuple(self.sessions) if s.lease is not None), key=lambda lease: lease.since)
        told = [f"{lease.thread.name} for {now - lease.since:.1f} s" for lease in leases[:at_most]]
        if len(leases) > at_most:
            told.append(f"{len(leases) - at_most} more")
        return told
