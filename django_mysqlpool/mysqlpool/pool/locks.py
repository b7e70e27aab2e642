"""Locks that are acquired only if they are free, or become so in time.

A signal's handler may raise an exception after any call: also between a lock's ``acquire()`` and the ``try`` whose
``finally`` would release it, and then the lock is held for good. ``with lock:`` has no such gap, but it waits for ever.
The functions here note the lock in the caller's list in the same step of the interpreter in which they acquire it::

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

import threading
from operator import methodcaller

_acquire = methodcaller("acquire", blocking=False)


def acquire_if_free(lock: threading.RLock, held: list[threading.RLock]) -> bool:
    """Acquire a lock if no other thread holds it, and append it to ``held``."""
    held.extend(filter(_acquire, (lock,)))
    return bool(held)


def acquire_within(seconds: float, lock: threading.RLock, held: list[threading.RLock]) -> bool:
    """Acquire a lock if it is free within ``seconds``, and append it to ``held``."""
    held.extend(filter(methodcaller("acquire", timeout=seconds), (lock,)))
    return bool(held)
