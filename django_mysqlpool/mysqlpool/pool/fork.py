"""Everything about forks.

A fork waits until no connection is being opened or closed: the child would inherit sockets of which it can't know, and
locks of the TLS library that no thread in it releases. A child has empty pools with new locks. It lets go of inherited
connections without a byte on the wire: their sockets are shared with the parent. mysqlclient says QUIT when a connection
object is closed or deallocated, which would end the parent's session. So the child first points the descriptor elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from .locks import RLock, acquire_within

#: Seconds that a fork waits at most for connections that are being opened and closed, in all pools together, and that
#: these wait for a fork. As long as a server is given to answer, and so longer than a handshake on a busy machine takes.
MAX_WAIT = 10.0
#: Seconds that a fork waits for a lock, which is held for a decision and not while a server is waited for.
MAX_WAIT_FOR_LOCK = 1.0


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

    A fork raises the barriers of all pools, so that nothing new begins; waits for what has begun; and then holds the
    pools' locks. While it waits it holds none, and connections that are open are checked out and in.

    :param lock: the pool's lock
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        #: During a fork: the lock.
        self._held: list[threading.RLock] = []
        #: Stand for the connections that are being opened or closed, each with the thread that does it. That thread
        #: removes it by ``pop()`` in a ``finally``, without a call of ours, at which an interrupt could come, and then
        #: calls ``note_end()``.
        self.operations: dict[object, int] = {}
        #: The thread that forks.
        self._forking: int | None = None
        self._changed = threading.Condition(lock)

    @property
    def is_busy(self) -> bool:
        """True if a connection is being opened or closed."""
        return bool(self.operations)

    def begin(self, operation: object, seconds: float = MAX_WAIT) -> None:
        """Before a connection is opened or closed: wait for the end of a fork, for ``seconds`` at most."""
        thread = threading.get_ident()
        with self._lock:
            # (The garbage collector may have the forking thread itself close one.)
            self._changed.wait_for(lambda: self._forking in (None, thread), timeout=min(seconds, MAX_WAIT))
            self.operations[operation] = thread

    def note_end(self) -> None:
        """After an operation: let a fork go on that waits for it."""
        with self._lock:
            self._changed.notify_all()

    # Around a fork, in the parent

    def raise_for_fork(self) -> None:
        """Let nothing begin."""
        self._forking = threading.get_ident()

    def wait_for_end(self, deadline: float) -> None:
        """Wait for the operations to end, those of this thread apart.

        :param deadline: as ``time.monotonic()``
        """
        held: list[threading.RLock] = []
        try:
            if acquire_within(MAX_WAIT_FOR_LOCK, self._lock, held):
                self._changed.wait_for(lambda: not self._number_of_others(), timeout=max(deadline - time.monotonic(), 0))
        finally:
            for lock in held:
                lock.release()

    def _number_of_others(self) -> int:
        thread = threading.get_ident()
        return sum(of != thread for of in self.operations.copy().values())

    def hold(self) -> int:
        """Take the lock.

        Not at any price: a thread may hold it and wait for another pool's, if the garbage collector releases a connection
        in it.

        :returns: how many connections other threads are opening and closing still
        """
        acquire_within(MAX_WAIT_FOR_LOCK, self._lock, self._held)
        return self._number_of_others()

    def lower_after_fork(self) -> None:
        """Go on."""
        try:
            self._forking = None
            if self._held or acquire_within(MAX_WAIT_FOR_LOCK, self._lock, self._held):
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
