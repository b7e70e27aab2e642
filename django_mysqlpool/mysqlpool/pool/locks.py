"""Locks that no interrupt leaves locked.

A signal's handler may raise an exception after any call: also between a lock's ``acquire()`` and the ``try`` whose
``finally`` would release it, and then the lock is held for good. ``with lock:`` has no such gap, but for Python 3.14's
(https://github.com/python/cpython/issues/148874): there a handler may raise when the lock is acquired and the block not
begun. So the locks of this package are made by ``RLock()`` of this module, and a test looks for others.

``with`` waits for ever. The functions here don't; they note the lock in the caller's list in the same step of the
interpreter in which they acquire it::

    held = []
    try:
        if acquire_if_free(lock, held):
            ...
    finally:
        for lock in held:
            lock.release()

Python 3.12 and 3.13 have another gap (https://github.com/python/cpython/issues/130279): where a loop goes on after a
condition (``while a:``, an ``if`` at the end of a loop or in a comprehension), an exception of a handler passes by the
``with`` and ``try`` blocks of that function. So no such loop stands in such a block here: it has a function of its own.
"""

from __future__ import annotations

import sys
import threading
from operator import methodcaller
from typing import Any

_acquire = methodcaller("acquire", blocking=False)
_wait_for = methodcaller("acquire")

#: This Python may acquire the lock of a ``with`` statement and never release it.
WITH_HAS_A_GAP = sys.version_info[:2] == (3, 14)

_Native: Any = type(threading.RLock())


class GuardedRLock(_Native):  # type: ignore[misc]
    """One whose method for ``with`` is in Python: after such a method returns, no handler is run."""

    def __enter__(self) -> bool:
        held: list[threading.RLock] = []
        try:
            held.extend(filter(_wait_for, (self,)))
        except BaseException:
            for lock in held:
                lock.release()
            raise
        return True


def RLock() -> threading.RLock:  # noqa: N802
    """Make a re-entrant lock of the class that ``threading`` has now, which may be gevent's.

    On Python 3.14 a guarded lock stands in for Python's own.
    """
    lock = threading.RLock()
    return GuardedRLock() if WITH_HAS_A_GAP and type(lock) is _Native else lock


def acquire_if_free(lock: threading.RLock, held: list[threading.RLock]) -> bool:
    """Acquire a lock if no other thread holds it, and append it to ``held``."""
    held.extend(filter(_acquire, (lock,)))
    return bool(held)


def acquire_within(seconds: float, lock: threading.RLock, held: list[threading.RLock]) -> bool:
    """Acquire a lock if it is free within ``seconds``, and append it to ``held``."""
    held.extend(filter(methodcaller("acquire", timeout=seconds), (lock,)))
    return bool(held)
