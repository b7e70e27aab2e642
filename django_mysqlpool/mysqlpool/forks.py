"""What a child process does with the connections that it inherited: it lets go of them without a byte on the wire.

The socket of an inherited connection is shared with the parent. mysqlclient says QUIT on it when the connection object
is closed or deallocated, which would end the parent's session; so the child first points the descriptor elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from django.db import connections

if TYPE_CHECKING:
    from .driver import Driver
    from .pool import Pool
    from .session import Session


@runtime_checkable
class Abandonable(Protocol):
    """A pooled wrapper, as far as it matters here."""

    connection: Any
    driver: Driver
    use: Any
    _lease: Any

    def forget_connection(self) -> None: ...


def abandon(pools: Iterable[Pool]) -> None:
    """In a child, right after the fork: cut off the connections of its parent and clear the wrappers that hold any."""
    for pool in pools:
        for session in pool.sessions.copy():
            _redirect(session)
            _keep_for_good(session)
            _end_lease(session)
        pool.abandon()
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, Abandonable):
            leave_to_parent(wrapper)


def leave_to_parent(wrapper: Abandonable) -> None:
    """Clear a wrapper of this thread's: what it holds is the parent's."""
    is_unused = wrapper.use.acquire(blocking=False)
    wrapper.use = threading.RLock()  # a thread of the parent's may have held the last one
    if wrapper._lease is not None:
        if is_unused:
            _close(wrapper.driver, wrapper.connection)
        wrapper.forget_connection()


def _end_lease(session: Session) -> None:
    """What it was taken for, a request say, goes on in the parent; cursors of it are closed here."""
    lease = session.lease
    if lease is not None:
        lease.use = threading.RLock()  # a thread of the parent's may have held the last one
        lease.is_over = True


def _redirect(session: Session) -> None:
    """Let the descriptor lead nowhere; the parent's socket is closed in this process without a word."""
    if not session.has_its_socket():
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, session.descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _keep_for_good(thing: object) -> None:
    """Never deallocate ``thing``, not even at the interpreter's end.

    The driver would say QUIT then, and where the child has closed its descriptors, as daemons do, their numbers may be
    other sockets' by now: another server would be told.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _close(driver: Driver, connection: Any) -> None:
    """Say goodbye to nobody, while the descriptor leads nowhere: a cursor with unread rows would read them later."""
    with suppress(Exception):
        driver.close(connection)
