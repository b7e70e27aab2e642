"""Connections that nobody will return: of threads that have ended, of wrappers that were dropped, and after interrupts."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from django_mysqlpool.mysqlpool.drivers.sockets import is_patched_by_gevent

from . import reports
from .borrowing import Borrower
from .connection import Lease, Session
from .locks import acquire_if_free
from .slots import LOST_AFTER
from .states import CLOSED

#: Seconds after which a close that has not ended is taken for interrupted; the server is waited for a second.
CLOSED_AFTER = 5.0


class Reclaimer:
    """Finds them, and reclaims them.

    :param sessions: the open ones
    :param discard: ends a lease and closes its connection
    :param close_at_once: closes a session's connection without a wait for the server
    :param note_reclaimed: is told of each connection that its holder has abandoned
    :param is_counting_here: tells if the calling thread holds the lock of the counts
    :param always_reset: the option ``reset`` is "always"
    """

    def __init__(
        self,
        sessions: set[Session],
        discard: Callable[[Lease], None],
        close_at_once: Callable[[Session], None],
        note_reclaimed: Callable[[], None],
        is_counting_here: Callable[[], bool],
        *,
        always_reset: bool,
    ) -> None:
        self._sessions = sessions
        self._discard = discard
        self._close_at_once = close_at_once
        self._note_reclaimed = note_reclaimed
        self._is_counting_here = is_counting_here
        self._always_reset = always_reset
        self._pid = os.getpid()
        #: Sessions whose connection is in no slot, by when that was first seen; ``time.monotonic()``.
        self._stranded: dict[Session, float] = {}
        #: Leases whose wrapper was dropped under gevent, or while the thread counted.
        self._dropped: deque[Lease] = deque()

    def leases(self) -> list[Lease]:
        """The leases of the connections that are out."""
        return [lease for session in self._sessions.copy() if (lease := session.lease) is not None]

    def reclaim(self, *, spare: threading.Thread | None = None) -> None:
        """Reclaim connections.

        :param spare: a thread whose connections are left alone though it has ended
        """
        with suppress(IndexError):
            for _ in range(len(self._dropped)):
                self._close_dropped(self._dropped.popleft())
        for lease in self.leases():
            if lease.scope is not None and not lease.scope.has_ended and lease.scope.is_left():
                lease.scope.end()
            is_left = lease.thread is not spare and lease.is_of_a_dead_thread()
            # (One of this thread may be on its way below on the stack.)
            if not is_left and (lease.thread_id == threading.get_ident() or not lease.is_stray()):
                continue
            borrower = lease.borrower()
            held: list[threading.RLock] = []
            try:
                # Another thread may be doing the same: the maintenance thread, or a waiter.
                if borrower is not None and acquire_if_free(lease.use, held):
                    if lease.is_stray():
                        self.close_stray(lease)
                    elif is_left:
                        self._take_from_dead(lease, borrower)
            finally:
                for lock in held:
                    lock.release()
        self._close_stranded()

    def close_stray(self, lease: Lease) -> None:
        """Close a connection that an interrupt has lost on its way to or from its borrower, whose lock is held."""
        borrower = lease.borrower()
        if lease.is_returned:
            return
        if borrower is not None and borrower.lease is lease:
            borrower.check_in()
        else:
            lease.invalidate("interrupted")
            self._close_dropped(lease)

    def _take_from_dead(self, lease: Lease, borrower: Borrower) -> None:
        # Threads may share the wrapper: another one may have used it meanwhile, or count on what is in its session.
        if lease.is_returned or not lease.is_of_a_dead_thread() or borrower.is_in_shared_block():
            return
        has_ended = lease.scope is not None and lease.scope.has_ended
        if borrower.allow_thread_sharing and lease.session.is_dirty and not has_ended:
            return
        self._report(lease)
        # To close it ends its transaction too, and never waits for a server that has gone silent.
        if lease.state or self._always_reset or lease.session.needs_server_to_clean():
            lease.invalidate("abandoned")
        borrower.check_in_if_idle(lease, by_force=True)

    def take_from_nobody(self, lease: Lease) -> None:
        """Close the connection of a wrapper that was dropped without being closed; the garbage collector may be calling."""
        # Of a parent's nothing is closed here, and nobody has abandoned what a thread still held when the process ended.
        if os.getpid() != self._pid or sys.is_finalizing():
            return
        # To close it takes the pool's lock. Whoever has that may wait for the lock of the counts, if this thread has it.
        # Or this may be gevent's hub, where nothing may wait; an interrupt would be lost there, as any exception is.
        if self._is_counting_here() or is_patched_by_gevent():
            self._dropped.append(lease)
        else:
            self._close_dropped(lease)

    def _close_dropped(self, lease: Lease) -> None:
        self._report(lease)
        lease.invalidate("abandoned")
        self._discard(lease)

    def _report(self, lease: Lease) -> None:
        # In a scope, an ended thread's connection goes back with the others at the scope's end: nobody has abandoned it.
        if lease.scope is None:
            self._note_reclaimed()
            reports.forgotten(lease)

    def _close_stranded(self) -> None:
        """Close connections that an interrupt has kept from SQLAlchemy: at a second look they still are in no slot."""
        now = time.monotonic()
        known, self._stranded = self._stranded, {}
        for session in self._sessions.copy():
            record, is_closing = session.record, session.state == CLOSED
            is_stranded = record is not None and record.dbapi_connection is not session.connection
            if is_closing or (is_stranded and not session.is_being_opened):
                self._stranded[session] = since = known.get(session, now)
                if now - since >= (CLOSED_AFTER if is_closing else LOST_AFTER):
                    self._close_at_once(session)
