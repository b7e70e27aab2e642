"""Connections on their way in or out: a fork waits for them, or its child would have sockets that it can't know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds that a fork waits at most, as it does not wait for a server; and that others wait for a fork.
PATIENCE = 1.0


class Transit:
    """What a pool is opening and closing just now, and the fork that waits for the end of that."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._number = 0
        self._forking: threading.Thread | None = None
        self._changed = threading.Condition(lock)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Open or close a connection, not in the middle of a fork."""
        with self._lock:
            # (The garbage collector may have the forking thread itself close one.)
            self._changed.wait_for(lambda: self._forking in (None, threading.current_thread()), timeout=PATIENCE)
            self._number += 1
        try:
            yield
        finally:
            with self._lock:
                self._number -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Before a fork, with the lock held: wait for what is on its way, and let nothing begin."""
        self._forking = threading.current_thread()
        self._changed.wait_for(lambda: not self._number, timeout=PATIENCE)

    def resume(self) -> None:
        """After the fork, in the parent, with the lock held."""
        self._forking = None
        self._changed.notify_all()
