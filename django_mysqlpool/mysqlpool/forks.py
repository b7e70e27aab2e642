"""What a child process does with the connections that it inherited: it lets go of them without a byte on the wire.

The socket of an inherited connection is shared with the parent. mysqlclient says QUIT on it when the connection object
is closed or deallocated, which would end the parent's session; so the child first points the descriptor elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from .pool import Pool
    from .session import Session

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
        fairy = getattr(wrapper, "_fairy", None)
        if fairy is not None:
            _kept.append(fairy)
            wrapper.forget_connection()  # type: ignore[attr-defined]


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
