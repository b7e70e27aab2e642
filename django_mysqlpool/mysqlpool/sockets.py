"""Looking at a socket without reading it, and waiting for one; under gevent too, which puts others at select's place."""

from __future__ import annotations

import os
import select
import sys
from typing import Any


def is_patched_by_gevent() -> bool:
    """Whether gevent has put its own sockets at the place of Python's."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("socket")


def is_in_hub() -> bool:
    """Whether this runs in gevent's hub, where nothing may wait: what greenlets leave when they end is dropped there."""
    hub = sys.modules.get("gevent.hub")
    return hub is not None and isinstance(hub.getcurrent(), hub.Hub)


def glance(descriptor: int) -> Any:
    """A ``poll`` object for a look that waits for nothing: ``poll(0)``. For one thread at a time.

    It is the system's own. That of gevent switches to other greenlets, even where it is not to wait.
    """
    monkey = sys.modules.get("gevent.monkey")
    make = select.poll if monkey is None else monkey.get_original("select", "poll")
    poll = make()
    poll.register(descriptor, select.POLLIN)
    return poll


def is_readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or an end, within ``seconds``; under gevent others run meanwhile."""
    if seconds <= 0:
        return bool(glance(descriptor).poll(0))
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def identity(descriptor: int) -> tuple[int, int]:
    """What tells this open file from another that is given the same number later."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
