"""The function for users that keeps a connection with a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, connections

from .pooled import PooledWrapper


@contextmanager
def hold_connection(using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Keep the connection of an alias with this thread, from its first statement to the end of the block.

    It is for code that needs one session for several statements with ``release = "transaction"``. On an alias with
    ``release = "request"``, or one that is not pooled, it does nothing. Blocks can be nested. It is for the calling thread,
    and so for synchronous code.

    :param using: the database alias; default ``"default"``
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have the alias
    """
    wrapper = connections[using]
    if not isinstance(wrapper, PooledWrapper) or wrapper.release is None:
        yield
        return
    release = wrapper.release
    release.holds += 1
    try:
        yield
    finally:
        release.holds -= 1
        lease = wrapper.lease
        if lease is not None and lease.return_requested:
            lease.return_if_requested()
