"""Waiting for a socket, and what gevent changes about that."""

from __future__ import annotations

import os
import select
import sys

from .glance import glance


def is_patched_by_gevent() -> bool:
    """Whether gevent has put its own sockets at the place of Python's."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("socket")


def is_readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or an end, within ``seconds``; under gevent others run meanwhile."""
    if seconds <= 0:
        return bool(glance(descriptor)())  # gevent's poll() lets others run, even where it is not to wait
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def identity(descriptor: int) -> tuple[int, int]:
    """What tells this open file from another that is given the same number later."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
