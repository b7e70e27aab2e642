"""A unit of work: the code that runs in one ``auto_close_db``, and the return of its connections."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

from django_mysqlpool.mysqlpool.backend.scope import Scope, is_in_event_loop, set_current_scope
from django_mysqlpool.mysqlpool.backend.threads import in_atomic_block

R = TypeVar("R")

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease


class Work(Scope):
    """The scope of a unit of work. It returns the connections of the aliases in ``using`` (``None``: all).

    It leaves an alias to the surrounding work, if that is also for the alias and runs in the same task or thread. Work in
    another thread with the same context is not surrounding work: each thread returns its own connections.
    """

    def __init__(self, using: frozenset[str] | None = None, name: Callable[[], str] | None = None) -> None:
        super().__init__(name)
        for alias in using or ():
            if alias not in connections.settings:
                connections[alias]  # raises ConnectionDoesNotExist
        self.using = using
        self.runner = current_runner()

    def __enter__(self) -> Work:  # noqa: PYI034 (Self is Python 3.11's)
        # Each step of a generator may run in another thread.
        self.runner = current_runner()
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        # A dropped coroutine is closed in another context than it ran in, and there is nothing to reset there.
        with suppress(ValueError):
            super().__exit__(*exception)

    def looks_after(self, alias: str) -> bool:
        """Return ``True`` if the connections of ``alias`` return at the end of this work, not of a surrounding one."""
        if self.parent is None:
            return self._is_for(alias)
        return self._is_for(alias) and not any(
            isinstance(outer, Work) and outer.runner is self.runner and not outer.has_ended and outer._is_for(alias)
            for outer in self._with_parents()
            if outer is not self
        )

    def _is_for(self, alias: str) -> bool:
        return self.using is None or alias in self.using

    def add(self, lease: Lease) -> None:
        """Add a checkout to this scope, or to the surrounding one if that looks after the alias."""
        if (self.has_ended or self.is_left()) and self.runner is current_runner():
            # Its code is no longer running: an interrupt has kept it from ending, or from leaving its block before that.
            set_current_scope(self.parent)
            if self.parent is not None:
                self.parent.add(lease)
        elif self.looks_after(lease.alias):
            super().add(lease)
        elif self.parent is not None:
            self.parent.add(lease)

    def finish(self, keep: AbstractSet[str], *, with_thread: bool = True) -> None:
        """Return the connections of this work to their pools.

        Aliases that are not pooled are treated as Django treats them at the end of a request.

        :param keep: aliases whose connections stay out, because the caller has an open ``atomic()`` block
        :param with_thread: also return the connections that this thread has checked out outside of the work
        """
        if must_not_wait():
            self.end(may_ask_server=False)
            return
        for lease in self.leases.copy():
            if lease.alias in keep and lease.thread is threading.current_thread():
                # From here on it belongs to the code that opened the block.
                self.leases.discard(lease)
                lease.scope = self.parent
        ours = [wrapper for wrapper in connections.all(initialized_only=True) if self.looks_after(wrapper.alias)]
        pooled = [wrapper for wrapper in ours if getattr(wrapper, "pool_options", None) is not None]
        if with_thread:
            for wrapper in pooled:
                if wrapper.alias not in keep:
                    wrapper.check_in()  # type: ignore[attr-defined]
        self.end()
        if with_thread:
            for wrapper in ours:
                if wrapper not in pooled:
                    wrapper.close_if_unusable_or_obsolete()

    async def finish_async(self) -> None:
        """Return the connections of a coroutine, which are in other threads."""
        if must_not_wait():
            await end_from_event_loop(self)
        else:
            self.finish(keep=frozenset())


def run_as_work(
    name: Callable[[], str], using: frozenset[str] | None, function: Callable[..., R], /, *args: Any, **kwargs: Any
) -> R:
    """Call ``function`` as a unit of work. ``name`` returns its name for messages."""
    of_the_caller = in_atomic_block()
    work = Work(using, name)
    try:
        try:
            with work:
                return function(*args, **kwargs)
        finally:
            work.finish(keep=of_the_caller)
    except BaseException:
        if not work.has_ended:  # the first finish() was interrupted
            work.finish(keep=of_the_caller)
        raise


def name_of(function: Any) -> str:
    """Return ``module.function``, the name of a call's work in messages."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def current_runner() -> object:
    """Return the task that runs this code, or the thread if there is none."""
    task = asyncio.current_task() if is_in_event_loop() else None
    return task or threading.current_thread()


def must_not_wait() -> bool:
    """Return ``True`` in the thread of an event loop, unless ``DJANGO_ALLOW_ASYNC_UNSAFE`` allows the database there."""
    return is_in_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")


async def end_from_event_loop(scope: Scope) -> None:
    """End a scope from an event loop, which must not wait for the database server.

    Clean connections return at once. The rest is done in the thread of the request's synchronous code. Connections that
    other threads are using are returned by those threads.
    """
    if scope.end(may_ask_server=False):
        try:
            await sync_to_async(scope.end)()
        except RuntimeError:  # the process is out of threads, so the rest is done here
            scope.end()
