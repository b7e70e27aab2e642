"""Everything about forks.

A fork waits until no connection is being opened or closed: the child would inherit sockets of which it can't know. A
child has empty pools with new locks. It lets go of inherited connections without a byte on the wire: their sockets are
shared with the parent. mysqlclient says QUIT when a connection object is closed or deallocated, which would end the
parent's session. So the child first points the descriptor elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from .locks import RLock, acquire_within

#: Seconds that a fork waits at most, as it does not wait for a server; and that others wait for a fork.
MAX_WAIT = 1.0


class Participant(Protocol):
    """Is made ready for a fork, and mended after it."""

    def before_fork(self) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...


#: In the order in which they are made ready. The parent mends them in reverse order, the child in this one.
_participants: list[Participant] = []
#: The process that they are ready in. A wrapper compares it with ``os.getpid()`` itself, before each statement.
pid = os.getpid()
_noticing = RLock()


def take_part(participant: Participant) -> None:
    """Have a participant called around each fork from now on."""
    _participants.append(participant)


def notice_fork() -> None:
    """Make up for a fork that ran none of Python's hooks: uWSGI forks its workers in C."""
    if os.getpid() != pid:
        with _noticing:
            if os.getpid() != pid:
                _after_in_child()


def _before() -> None:
    for participant in _participants:
        participant.before_fork()


def _after_in_parent() -> None:
    for participant in reversed(_participants):
        participant.after_fork_in_parent()


def _after_in_child() -> None:
    global pid  # noqa: PLW0603
    for participant in _participants:
        participant.after_fork_in_child()
    pid = os.getpid()  # last: other threads of the child wait for it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


class ForkBarrier:
    """The connections that a pool is opening and closing now, and the fork that waits until it is done.

    :param lock: the pool's lock
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        #: During a fork: the lock.
        self._held: list[threading.RLock] = []
        #: Stand for the connections that are being opened or closed. Whoever has begun an operation discards it in a
        #: ``finally``, without a call of ours, at which an interrupt could come, and then calls ``note_end()``.
        self.operations: set[object] = set()
        self._forking: threading.Thread | None = None
        self._changed = threading.Condition(lock)

    @property
    def is_busy(self) -> bool:
        """True if a connection is being opened or closed."""
        return bool(self.operations)

    def begin(self, operation: object) -> None:
        """Before a connection is opened or closed: wait for the end of a fork."""
        with self._lock:
            # (The garbage collector may have the forking thread itself close one.)
            self._changed.wait_for(lambda: self._forking in (None, threading.current_thread()), timeout=MAX_WAIT)
            self.operations.add(operation)

    def note_end(self) -> None:
        """After an operation: let a fork go on that waits for it."""
        with self._lock:
            self._changed.notify_all()

    def raise_for_fork(self) -> None:
        """Before a fork: take the lock, wait for the operations to end, and let none begin.

        Not for ever: a thread may hold the lock and wait for another pool's, if the garbage collector releases a
        connection in it.
        """
        if acquire_within(MAX_WAIT, self._lock, self._held):
            self._forking = threading.current_thread()
            self._changed.wait_for(lambda: not self.operations, timeout=MAX_WAIT)

    def lower_after_fork(self) -> None:
        """In the parent: go on."""
        try:
            self._forking = None
            if self._held:
                self._changed.notify_all()
        finally:
            for lock in self._held:
                lock.release()
            self._held.clear()


# In a child


class Inherited(Protocol):
    """The record of a connection that a child has inherited."""

    @property
    def descriptor(self) -> int: ...

    def has_its_socket(self) -> bool: ...


def discard_inherited(connections: Iterable[Inherited]) -> None:
    """Cut off inherited connections, so that the parent's sessions go on."""
    for connection in connections:
        _redirect(connection)
        _keep_for_good(connection)


def _redirect(connection: Inherited) -> None:
    """Let the descriptor lead to /dev/null; the parent's socket is closed in this process without a word."""
    if not connection.has_its_socket():
        return
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
    except OSError:
        # Out of descriptors. This one's number is free once it is closed, and no other thread is there to take it.
        os.close(connection.descriptor)
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != connection.descriptor:
                os.dup2(nowhere, connection.descriptor, inheritable=False)
                os.close(nowhere)
        return
    try:
        os.dup2(nowhere, connection.descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _keep_for_good(thing: object) -> None:
    """Never deallocate ``thing``, not even at the interpreter's end.

    The driver would say QUIT then. A daemon has closed its descriptors, and their numbers may be other sockets' by then:
    another server would be told.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
