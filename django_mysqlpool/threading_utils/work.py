"""A piece of work: what runs in one ``auto_close_db``, and what goes back to the pools at its end."""

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

from django_mysqlpool.mysqlpool.registry import in_atomic_block
from django_mysqlpool.mysqlpool.scope import Scope, is_in_event_loop

R = TypeVar("R")

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.lease import Lease


class Work(Scope):
    """A scope that looks after the aliases in ``using`` (``None``: all), except where the work around it does.

    The work around it is that of the same task, or of the same thread. The same context in another thread is no such
    thing: whoever runs there gives back what that thread holds.
    """

    __slots__ = ("runner", "using")

    def __init__(self, using: frozenset[str] | None = None, name: Callable[[], str] | None = None) -> None:
        super().__init__(name)
        for alias in using or ():
            if alias not in connections.settings:
                connections[alias]  # raises ConnectionDoesNotExist
        self.using = using
        self.runner = current_runner()

    def __enter__(self) -> Work:  # noqa: PYI034 (Self is Python 3.11's)
        # A generator may take each step in another thread.
        self.runner = current_runner()
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        # A coroutine that is dropped is closed in a context that it never was in, where there is nothing to reset.
        with suppress(ValueError):
            super().__exit__(*exception)

    def looks_after(self, alias: str) -> bool:
        """Whether it is this work's end that gives the connections of ``alias`` back."""
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
        """Count a lease in; one that is not looked after here is the surrounding scope's, if there is one."""
        if self.looks_after(lease.alias):
            super().add(lease)
        elif self.parent is not None:
            self.parent.add(lease)

    def finish(self, keep: AbstractSet[str], *, with_thread: bool = True) -> None:
        """Give back what this work took, and ``with_thread`` whatever its thread holds; not the aliases in ``keep``.

        Aliases that are not pooled are treated as Django treats them at the end of a request.
        """
        if must_not_wait():
            self.end(may_ask_server=False)
            return
        for lease in self.leases.copy():
            if lease.alias in keep and lease.thread is threading.current_thread():
                # Whoever opened the block has it from here on.
                self.leases.discard(lease)
                lease.scope = self.parent
        ours = [wrapper for wrapper in connections.all(initialized_only=True) if self.looks_after(wrapper.alias)]
        pooled = [wrapper for wrapper in ours if getattr(wrapper, "pool_options", None) is not None]
        if with_thread:
            for wrapper in pooled:
                if wrapper.alias not in keep:
                    wrapper.give_back()  # type: ignore[attr-defined]
        self.end()
        if with_thread:
            for wrapper in ours:
                if wrapper not in pooled:
                    wrapper.close_if_unusable_or_obsolete()

    async def finish_async(self) -> None:
        """The same at the end of a coroutine, whose connections are in other threads."""
        if must_not_wait():
            await end_from_event_loop(self)
        else:
            self.finish(keep=frozenset())


def run_as_work(
    name: Callable[[], str], using: frozenset[str] | None, function: Callable[..., R], /, *args: Any, **kwargs: Any
) -> R:
    """Call ``function`` as a piece of work, whose name tells a person what it is."""
    of_the_caller = in_atomic_block()
    work = Work(using, name)
    try:
        with work:
            return function(*args, **kwargs)
    finally:
        work.finish(keep=of_the_caller)


def name_of(function: Any) -> str:
    """``module.function``, to name the work of a call by."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def current_runner() -> object:
    """What runs this code: a task of an event loop, or else a thread."""
    task = asyncio.current_task() if is_in_event_loop() else None
    return task or threading.current_thread()


def must_not_wait() -> bool:
    """Whether this is an event loop's thread, and nobody has said that it may use the database."""
    return is_in_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")


async def end_from_event_loop(scope: Scope) -> None:
    """End a scope from an event loop, which must not wait for the database server.

    What is clean goes back at once. The rest is looked after in the thread of the request's synchronous code: what other
    threads still use, they give back themselves.
    """
    if scope.end(may_ask_server=False):
        await sync_to_async(scope.end)()
