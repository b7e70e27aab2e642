"""The wrappers of the calling thread."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.db import connections

from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.pool import fork
from django_mysqlpool.mysqlpool.pool.locks import RLock
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

from .pooled import forget_connection


def check_in(using: str | None = None, *, keep: AbstractSet[str] = frozenset()) -> None:
    """Return the calling thread's pooled connections, rolled back.

    :param using: of this alias only
    :param keep: not of these aliases
    """
    for wrapper in _ours():
        if wrapper.pool_options is not None and wrapper.alias not in keep and using in (None, wrapper.alias):
            wrapper.check_in()


def in_atomic_block() -> frozenset[str]:
    """The aliases whose connection is inside an ``atomic()`` block of the calling thread's."""
    return frozenset(wrapper.alias for wrapper in _ours() if wrapper.in_atomic_block)


def _ours() -> list[Any]:
    """Those of our engines, pooled or not."""
    return [wrapper for wrapper in _all() if hasattr(wrapper, "pool_options")]


def _all() -> list[Any]:
    while True:
        try:
            return list(connections.all(initialized_only=True))
        except RuntimeError:  # noqa: PERF203 (another thread has just added an alias, or removed one)
            continue


def leave_nothing() -> None:
    """Return what code of the user's, a handler of a log for instance, has taken in the maintenance thread."""
    for wrapper in _all():
        try:
            getattr(wrapper, "check_in", wrapper.close)()
        except Exception as error:  # noqa: PERF203 (one alias' trouble is not the others')
            say(logging.INFO, "Alias '%s': what a log handler has used could not be closed: %s", wrapper.alias, error)


maintenance.release_connections = leave_nothing


def detach_after_fork(wrapper: Any) -> None:
    """In a child: clear a wrapper of this thread's; what it has is the parent's."""
    is_unused = wrapper.use.acquire(blocking=False)
    # A thread of the parent's may have held the last one.
    wrapper.use = wrapper.reference.use = RLock()
    if wrapper.lease is not None:
        if is_unused:
            with suppress(Exception):  # its descriptor leads nowhere; a cursor with unread rows would read them later
                wrapper.driver.close(wrapper.connection)
        forget_connection(wrapper)


class _Wrappers:
    """The wrappers of the thread that forks, in its child."""

    def before_fork(self) -> None:
        pass

    def after_fork_in_parent(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        if not settings.configured:  # the package has been imported, and Django is not used
            return
        for wrapper in _ours():
            detach_after_fork(wrapper)


fork.take_part(_Wrappers())
