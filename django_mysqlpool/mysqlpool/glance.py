"""A glance at a socket: whether there is anything to read now."""

from __future__ import annotations

import ctypes
import select


class _Poll(ctypes.Structure):
    # struct pollfd
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


# Python's own poll() gives up the GIL, for it may wait. This one never does, and a thread that keeps the GIL for its half
# microsecond has it back at once: in a busy process the other way would cost a change of threads at each checkout.
_poll = ctypes.PyDLL(None).poll
_poll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int)


class Glance:
    """Call it to look; any thread may."""

    __slots__ = ("_at",)

    def __init__(self, descriptor: int) -> None:
        self._at = ctypes.byref(_Poll(descriptor, select.POLLIN, 0))

    def __call__(self) -> bool:
        """Whether something can be read, the end of the stream included, or the descriptor is none any more."""
        return bool(_poll(self._at, 1, 0))
