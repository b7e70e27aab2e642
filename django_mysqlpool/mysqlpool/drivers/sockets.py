"""The sockets below the drivers' connections, and what gevent changes about waiting for them."""

from __future__ import annotations

import _socket
import ctypes
import os
import select
import sys
from collections.abc import Callable
from functools import partial

_SHUT_RDWR = 2  # of sys/socket.h; to have it by Python's socket would take the descriptor over


class _Poll(ctypes.Structure):
    # struct pollfd
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


# Python's own poll() gives up the GIL, for it may wait. This one never does, and a thread that keeps the GIL for its half
# microsecond has it back at once: in a busy process the other way would cost a change of threads at each checkout. (Its
# arguments are of their C types already; to declare them would have each call convert them.)
_poll = ctypes.PyDLL(None).poll
_ONE, _AT_ONCE = ctypes.c_ulong.from_param(1), ctypes.c_int.from_param(0)


def poll_once(descriptor: int, events: int = select.POLLIN) -> Callable[[], int]:
    """A function that any thread may call to look at a socket.

    :returns: not 0 if there is something to read, or an end, or the descriptor is none
    """
    return partial(_poll, ctypes.byref(_Poll(descriptor, events, 0)), _ONE, _AT_ONCE)


def is_patched_by_gevent() -> bool:
    """True if gevent has put its own sockets in the place of Python's."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("socket")


def is_readable(descriptor: int, seconds: float) -> bool:
    """True if there is something to read, or an end, within ``seconds``; under gevent others run meanwhile."""
    if seconds <= 0:
        return bool(poll_once(descriptor)())  # gevent's poll() lets others run, even if it is not to wait
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def make_writable(descriptor: int) -> None:
    """See to it that a farewell does not wait: if the network takes no more, the connection is cut.

    The driver writes it without a time limit.
    """
    if not poll_once(descriptor, select.POLLOUT)():
        ctypes.CDLL(None).shutdown(descriptor, _SHUT_RDWR)


class Socket:
    """The socket of a connection, known by its descriptor."""

    __slots__ = ("_identity", "descriptor", "has_pending_data")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._identity = _identity_of(descriptor)
        #: Tells if the socket is readable. An idle session's is not, unless the server hung up or says why it is about to.
        self.has_pending_data = poll_once(descriptor)

    def is_still_open(self) -> bool:
        """True if the descriptor is still this socket's.

        After a statement that lost its server the driver has closed the socket, still tells its number, and that number
        may be another file's by now.
        """
        try:
            return _identity_of(self.descriptor) == self._identity
        except OSError:
            return False


def duplicate(descriptor: int, held: list[int]) -> None:
    """Duplicate a descriptor, and append the new one to ``held`` in the same step: no interrupt loses it.

    :raises OSError: if the process is out of descriptors
    """
    held.extend(map(os.dup, (descriptor,)))


#: Makes the interpreter's own socket of a descriptor, which tells its family, type and protocol.
_socket_of = partial(_socket.socket, -1, -1, -1)


def peer_of(descriptor: int) -> str | None:
    """The address that a socket is connected to: ``host:port``, or the path of a file; ``None``: it tells none."""
    held: list[_socket.socket] = []
    try:
        is_blocking = os.get_blocking(descriptor)
        held.extend(map(_socket_of, map(os.dup, (descriptor,))))  # in one step too
        peer = held[0].getpeername()
    except OSError:
        return None
    finally:
        for its_own in held:
            its_own.close()
            # Where socket.setdefaulttimeout() was called it was made non-blocking, and the driver's with it.
            os.set_blocking(descriptor, is_blocking)
    if not isinstance(peer, tuple):
        return os.fsdecode(peer) or None
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _identity_of(descriptor: int) -> tuple[int, int]:
    """Tells an open file from another that is given the same number later."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
