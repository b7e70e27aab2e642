"""A scope: a request, or another piece of work, whose end is the end of all the leases that were taken on its behalf.

It travels in a context variable: into the threads of ``sync_to_async`` and ``asyncio.to_thread``, into tasks, into whatever
takes the context along.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lease import Lease
    from .transactions import TransactionRelease

_current: ContextVar[Scope | None] = ContextVar("django_mysqlpool.scope", default=None)


#: Tells the scope on whose behalf this code runs.
current_scope: Callable[[], Scope | None] = _current.get


def is_in_event_loop() -> bool:
    """Whether this thread is in an event loop, which must not wait for the database server."""
    return _get_running_loop() is not None


@contextmanager
def on_behalf_of(scope: Scope | None) -> Iterator[None]:
    """Count what the block takes to ``scope``, whichever this code runs in."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


class Scope:
    """The leases taken on behalf of a piece of work, and of the parts of it that are scopes of their own.

    Those taken in a ``with`` block of it, or in threads and tasks that the block starts, are its own. ``work`` is called
    for its name, "GET /orders/" for instance, where a person is told who has a connection.
    """

    __slots__ = ("__weakref__", "_token", "_work", "blocks", "has_ended", "leases", "parent")

    def __init__(self, work: Callable[[], str] | None = None) -> None:
        self._work = work
        self.leases: set[Lease] = set()
        #: Those in which a transaction was begun here without a connection: ``release`` is "transaction".
        self.blocks: set[TransactionRelease] = set()
        self.has_ended = False
        self.parent = _current.get()

    def told_work(self) -> str | None:
        """What the work is, as ``work`` tells it, or the work that it is a part of."""
        return next((scope._work() for scope in self._with_parents() if scope._work is not None), None)

    def contains(self, scope: Scope | None) -> bool:
        """Whether ``scope`` is this one or a part of it."""
        return scope is not None and self in scope._with_parents()

    def __enter__(self) -> Scope:  # noqa: PYI034 (Self is Python 3.11's)
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)

    def add(self, lease: Lease) -> None:
        """Count a lease in; what is taken after the end is wanted back as soon as it is idle."""
        lease.scope = self
        lease.is_wanted_back = self.has_ended
        scope: Scope | None = self
        while scope is not None:
            scope.leases.add(lease)
            scope = scope.parent

    def discard(self, lease: Lease) -> None:
        """The lease is over."""
        scope: Scope | None = self
        while scope is not None:
            scope.leases.discard(lease)
            scope = scope.parent

    def _with_parents(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def end(self, *, may_ask_server: bool = True) -> bool:
        """Give back what the calling thread holds, whatever state it is in, and what other threads hold idle.

        What is not idle elsewhere, a statement running or a transaction open, its own thread gives back when it is done
        with that, or when it turns to other work. With ``may_ask_server=False`` what can't be cleaned without the server
        is left out, so that an event loop may call this. Returns whether anything is left.
        """
        self.has_ended = True
        for lease in self.leases.copy():
            lease.is_wanted_back = True
            self._take_back(lease, by_force=True, may_ask_server=may_ask_server)
        if self.blocks:
            self.blocks = {wrapper for wrapper in self.blocks.copy() if not wrapper.leave_block()}
        return bool(self.leases or self.blocks)

    def release_idle(self, *, may_ask_server: bool = True) -> bool:
        """Give back what is idle now; the scope goes on. Returns whether any lease is left."""
        for lease in self.leases.copy():
            self._take_back(lease, by_force=False, may_ask_server=may_ask_server)
        return bool(self.leases)

    def _take_back(self, lease: Lease, *, by_force: bool, may_ask_server: bool) -> None:
        wrapper = lease.wrapper()
        if wrapper is None:
            self.discard(lease)
        else:
            wrapper.take_back(lease, by_force=by_force, may_ask_server=may_ask_server)
