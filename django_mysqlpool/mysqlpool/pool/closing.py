"""How a connection is closed: with a farewell that the server has read.

The server counts a connection until then. Without that wait the next connection could be one more than the cap.
"""

from __future__ import annotations

import os
import time

from django_mysqlpool.mysqlpool.drivers.sockets import duplicate, is_readable, make_writable

from .connection import Session


class Farewell:
    """Closes connections, and waits for their servers to hang up.

    A connection that must be closed is closed without that wait too, if need be: the process may be out of descriptors.
    """

    #: Seconds for a whole close. A server that streams rows which nobody has read does not get them anew with each part.
    TIMEOUT = 1.0
    #: Seconds for which no server is waited for after one that did not hang up: it would be the same with the next
    #: connection, and a pool that is closed has many.
    SILENCE = 1.0

    def __init__(self) -> None:
        self._silent_until = 0.0

    def close(self, session: Session) -> None:
        """Close a session's connection; once, however often it is called."""
        connection = session.detach()
        if connection is None:
            return
        held: list[int] = []
        try:
            try:
                if session.socket.is_still_open():
                    make_writable(session.socket.descriptor)
                    duplicate(session.socket.descriptor, held)
            except OSError:  # out of descriptors
                pass
            finally:
                session.driver.close(connection)
        finally:
            for socket in held:
                try:
                    self._wait_for_server(socket)
                finally:
                    os.close(socket)

    def _wait_for_server(self, socket: int) -> None:
        now = time.monotonic()
        waits = now >= self._silent_until
        deadline = now + self.TIMEOUT if waits else now
        try:
            if _is_silent_until(deadline, socket) and waits:
                self._silent_until = deadline + self.SILENCE
        except OSError:
            pass


def _is_silent_until(deadline: float, socket: int) -> bool:
    """Read from a socket until the server hangs up, or the deadline; ``True`` if the server said nothing."""
    has_spoken = False
    now = time.monotonic()
    # Readable: the server has hung up, or what nobody has read is still on its way.
    while is_readable(socket, max(deadline - now, 0)):
        has_spoken = True
        now = time.monotonic()
        if not os.read(socket, 65536) or now >= deadline:
            break
    return not has_spoken
