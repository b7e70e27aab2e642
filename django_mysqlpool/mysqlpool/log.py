"""Logging: when nothing is in the middle of anything, for a handler may write through the ORM.

Such a handler uses the calling thread's own wrapper, which may be just connecting, or giving its connection back, and
waits for a connection as any code does. So what is to be logged at such a moment, or under a lock, is said here and
logged later: by the same thread when it has returned its connection, or by another one that has, or by the
maintenance thread within one round. Signals are put off in the same way.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

logger = logging.getLogger("django_mysqlpool")


class _Here(threading.local):
    """The calling thread. Whoever sets one of these puts its last value back in a ``finally``."""

    #: Nothing is logged now.
    is_held = False
    #: A handler, or a receiver of a signal, is at work.
    is_telling = False


here = _Here()
#: Calls that are still to be made: of the logger, and of signals.
unsaid: deque[Callable[[], object]] = deque()


def say(level: int, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Have a message logged, soon. Takes no lock: the garbage collector may be calling."""
    if logger.isEnabledFor(level):
        unsaid.append(partial(logger.log, level, message, *arguments, exc_info=error))


def tell(clean_up: Callable[[], object] = lambda: None) -> None:
    """Log what has been said, unless this thread is in the middle of something; what a handler brings about comes later.

    :param clean_up: called afterwards: returns the connections that handlers have taken
    """
    if here.is_held:
        return
    try:
        here.is_held = here.is_telling = True
        for _ in range(len(unsaid)):
            try:
                call = unsaid.popleft()
            except IndexError:  # another thread was quicker
                return
            call()
    finally:
        here.is_held = False
        try:
            clean_up()
        finally:
            here.is_telling = False
