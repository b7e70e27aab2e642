"""What a child process does with the connections that it inherited: it lets go of them without a byte on the wire.

The socket of an inherited connection is shared with the parent. mysqlclient says QUIT on it when the connection object
is closed or deallocated, which would end the parent's session; so the child first points the descriptor elsewhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from django.db import connections

if TYPE_CHECKING:
    from .pool import Pool
    from .session import Session


@runtime_checkable
class Abandonable(Protocol):
    """A pooled wrapper, as far as it matters here."""

    use: Any
    _fairy: Any

    def forget_connection(self) -> None: ...


# Kept for the life of the child: to deallocate a connection with TLS is to have its library write to the socket.
_kept: list[Any] = []


def abandon(pools: Iterable[Pool]) -> None:
    """In a child, right after the fork: cut off the connections of its parent and clear the wrappers that hold any."""
    for pool in pools:
        pool.abandon()
        for session in tuple(pool.sessions):
            _redirect(session)
        _kept.append(pool)
    for wrapper in connections.all(initialized_only=True):
        if not isinstance(wrapper, Abandonable):
            continue
        wrapper.use = threading.RLock()  # a thread of the parent's may have held the last one
        if wrapper._fairy is not None:
            _kept.append(wrapper._fairy)
            wrapper.forget_connection()


def _redirect(session: Session) -> None:
    """Let the descriptor lead nowhere; the parent's socket is closed in this process without a word."""
    if not session.has_its_socket():
        return
    descriptor = session.connection.fileno()
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)
