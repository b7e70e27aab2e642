"""A scope: a request, or another piece of work, whose end is the end of all the leases that were taken on its behalf.

It travels in a context variable: into the threads of ``sync_to_async`` and ``asyncio.to_thread``, into tasks, into whatever
takes the context along.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType

from django_mysqlpool.mysqlpool.compat import get_running_loop

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease

_current: ContextVar[Scope | None] = ContextVar("django_mysqlpool.scope", default=None)


#: Tells the scope on whose behalf this code runs.
current_scope: Callable[[], Scope | None] = _current.get
set_current_scope: Callable[[Scope | None], Token[Scope | None]] = _current.set
reset_current_scope: Callable[[Token[Scope | None]], None] = _current.reset


def is_in_event_loop() -> bool:
    """True if this thread is in an event loop, which must not wait for the database server."""
    return get_running_loop() is not None


class on_behalf_of:  # noqa: N801
    """Count what the block takes to ``scope``, whichever this code runs in.

    (It is no generator: one that an interrupt drops goes on when it is collected, at any time and in any context.)
    """

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope | None) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = _current.set(self._scope)

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)


class Block(Protocol):
    """A wrapper that has state of Django's without a connection: ``release`` is "transaction"."""

    release: Any


class Scope:
    """The leases taken on behalf of a piece of work, and of the parts of it that are scopes of their own.

    Those taken in a ``with`` block of it, or in threads and tasks that the block starts, are its own. ``work`` is called
    with the ``subject`` for its name, "GET /orders/" for instance, where a person is told who has a connection.
    """

    # (One is made for each request. Python from 3.13 on makes an object that has no slots faster.)

    def __init__(self, work: Callable[..., str] | None = None, subject: tuple[Any, ...] = ()) -> None:
        self._work = work
        self._subject = subject
        self.leases: set[Lease] = set()
        self.blocks: set[Block] = set()
        #: Called after each lease that is taken.
        self.on_lease: Callable[[], None] | None = None
        self.has_ended = False
        #: The object that ends this scope. If that is gone first, an interrupt has kept it from it.
        self.owner: ReferenceType[object] | None = None
        #: The work that this is a part of. What is over is not gone on with: a thread may outlive its request.
        self.parent = _current.get()
        while self.parent is not None and (self.parent.has_ended or self.parent.is_left()):
            self.parent = self.parent.parent

    def is_left(self) -> bool:
        """True if nobody is there any more to end it."""
        return self.owner is not None and self.owner() is None

    def format_work(self) -> str | None:
        """Format the unit of work for messages, as ``work`` tells it, or the one that it is a part of."""
        return next((scope._work(*scope._subject) for scope in self._with_parents() if scope._work is not None), None)

    def contains(self, scope: Scope | None) -> bool:
        """True if ``scope`` is this one or a part of it."""
        return scope is not None and self in scope._with_parents()

    def __enter__(self) -> Scope:  # noqa: PYI034 (Self is Python 3.11's)
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)

    def add(self, lease: Lease) -> None:
        """Count a lease in; what is taken after the end is wanted back as soon as it is idle."""
        lease.scope = self
        scope: Scope | None = self
        while scope is not None:
            # First this and then the look, as end() does the two the other way round: one of them sees the other.
            scope.leases.add(lease)
            if scope.has_ended:
                lease.return_requested = True
            if scope.on_lease is not None:
                scope.on_lease()
            scope = scope.parent

    def discard(self, lease: Lease) -> None:
        """The lease is over."""
        scope: Scope | None = self
        while scope is not None:
            scope.leases.discard(lease)
            scope = scope.parent

    def _with_parents(self) -> list[Scope]:
        scopes = []
        scope: Scope | None = self
        while scope is not None:
            scopes.append(scope)
            scope = scope.parent
        return scopes

    def end(self, *, may_ask_server: bool = True) -> bool:
        """Return what the calling thread holds, whatever state it is in, and what other threads hold idle.

        What is not idle elsewhere, a statement running or a transaction open, its own thread returns when it is done
        with that, or when it turns to other work. With ``may_ask_server=False`` what can't be cleaned without the server
        is left out, so that an event loop may call this. Returns whether anything is left.
        """
        self.has_ended = True
        if not (self.leases or self.blocks):
            return False
        try:
            self._take_back(True, may_ask_server)
        except BaseException:  # an interrupt: what it kept from going back goes now
            self._take_back(True, may_ask_server)
            raise
        return bool(self.leases or self.blocks)

    def release_idle(self, *, may_ask_server: bool = True) -> bool:
        """Return what is idle now; the scope goes on. Returns whether any lease is left."""
        self._take_back(False, may_ask_server)
        return bool(self.leases)

    def _take_back(self, by_force: bool, may_ask_server: bool) -> None:
        for lease in self.leases.copy():
            if by_force:
                lease.return_requested = True
            wrapper = lease.borrower()
            if wrapper is None:
                self.discard(lease)
            else:
                wrapper.check_in_if_idle(lease, by_force, may_ask_server)
        if by_force and self.blocks:
            self.blocks = {wrapper for wrapper in self.blocks.copy() if not wrapper.release.leave_block(wrapper)}
