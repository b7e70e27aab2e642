"""A glance at a socket: whether there is anything to read now."""

from __future__ import annotations

import ctypes
import select
from collections.abc import Callable
from functools import partial


class _Poll(ctypes.Structure):
    # struct pollfd
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


# Python's own poll() gives up the GIL, for it may wait. This one never does, and a thread that keeps the GIL for its half
# microsecond has it back at once: in a busy process the other way would cost a change of threads at each checkout. (Its
# arguments are of their C types already; to declare them would have each call convert them.)
_poll = ctypes.PyDLL(None).poll


def glance(descriptor: int) -> Callable[[], int]:
    """What any thread may call to look; not 0: there is something to read, or an end, or the descriptor is none."""
    return partial(_poll, ctypes.byref(_Poll(descriptor, select.POLLIN, 0)), ctypes.c_ulong(1), 0)
