"""A lease: a connection that is out, from checkout to checkin."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import weakref

    from .pool import Pool
    from .report import Stack
    from .scope import Scope
    from .session import Session
    from .wrapper import PooledDatabaseMixin


class Lease:
    """Who has a connection, since when, for which alias, and who wants it back.

    The session refers to its lease, so the lease must not keep the wrapper alive: a wrapper that is dropped without being
    closed is found by the garbage collector.
    """

    __slots__ = (
        "alias",
        "is_busy",
        "is_lost",
        "is_over",
        "is_pinned",
        "is_reported",
        "is_shared",
        "is_wanted_back",
        "pool",
        "scope",
        "session",
        "since",
        "stack",
        "statement",
        "thread",
        "use",
        "wrapper",
    )

    def __init__(
        self,
        pool: Pool,
        session: Session,
        alias: str,
        wrapper: weakref.ref[PooledDatabaseMixin],
        use: threading.RLock,
    ) -> None:
        self.pool = pool
        self.session = session
        self.alias = alias
        self.wrapper = wrapper
        #: Held by the holder while it does anything with the connection; whoever else wants it back must hold it too.
        self.use = use
        self.thread = threading.current_thread()
        #: ``time.monotonic()``
        self.since = time.monotonic()
        self.scope: Scope | None = None
        #: Where the checkout happened, if it was in no scope, or the pool's ``leak_after`` asks for it.
        self.stack: Stack | None = None
        #: The last statement's template, for the kind of statement that it is.
        self.statement: object = None
        #: It has been logged that it was out for longer than ``leak_after``.
        self.is_reported = False
        #: The connection is of no more use: it is closed at its checkin, or before the next statement.
        self.is_lost = False
        #: A cursor has been made and not yet used, or has rows that are still with the server.
        self.is_busy = False
        #: ``release`` is "transaction".
        self.is_shared = pool.options.release == "transaction"
        #: It stays with its thread between statements, though it is wanted back; it has been counted.
        self.is_pinned = False
        #: The holder gives it back when it is done with what it is doing: its scope has ended, or it ``is_shared``.
        self.is_wanted_back = False
        #: The connection has been given back; cursors of this lease are closed.
        self.is_over = False

    def is_of_this_thread_or_a_dead_one(self) -> bool:
        """Whether nobody else can be in the middle of using it."""
        return self.thread is threading.current_thread() or not self.thread.is_alive()

    def note_error(self, error: Exception) -> None:
        """The driver has raised this for a statement of the holder's."""
        self.pool.note_error(self, error)

    def settle(self) -> None:
        """The holder is done with a statement or a transaction: give the connection back if it is wanted back."""
        wrapper = self.wrapper()
        if wrapper is not None and not self.is_over:
            wrapper.take_back(self)
