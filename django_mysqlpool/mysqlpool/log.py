"""Logging: when nothing is in the middle of anything, for a handler may write through the ORM.

Such a handler uses the calling thread's own wrapper, which may be just connecting, or giving its connection back, and
waits for a connection as any code does. So what is to be logged at such a moment, or under a lock, is said here and
logged later: by the same thread when it has returned its connection, or by another one that has, or by the
maintenance thread within one round.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

logger = logging.getLogger("django_mysqlpool")


class _Here(threading.local):
    """The calling thread. Whoever sets ``is_held`` puts its last value back in a ``finally``."""

    #: Nothing is logged now.
    is_held = False


here = _Here()
#: Lines that are still to be logged: the level, the message, its arguments, and the error that led to it.
unsaid: deque[tuple[int, str, tuple[object, ...], BaseException | None]] = deque()


def say(level: int, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Have a message logged, soon. Takes no lock: the garbage collector may be calling."""
    if logger.isEnabledFor(level):
        unsaid.append((level, message, arguments, error))


def tell() -> None:
    """Log what has been said, unless this thread is in the middle of something; what a handler brings about comes later."""
    if here.is_held:
        return
    try:
        here.is_held = True
        for _ in range(len(unsaid)):
            try:
                level, message, arguments, error = unsaid.popleft()
            except IndexError:  # another thread was quicker
                return
            logger.log(level, message, *arguments, exc_info=error)
    finally:
        here.is_held = False
