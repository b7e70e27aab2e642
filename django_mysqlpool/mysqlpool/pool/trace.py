"""A line in the log for each checkout and each checkin, if the level of the log is DEBUG."""

from __future__ import annotations

import logging
from typing import Any

from django_mysqlpool.mysqlpool.log import here, logger, say

from . import events
from .reports import format_work


def refresh() -> None:
    """Begin or end to trace, as the level of the log says.

    It is called when a connection is opened, and in each round of maintenance: to ask the log at each checkout would cost
    more than all that is counted there.
    """
    if logger.isEnabledFor(logging.DEBUG):
        events.observe(_trace, "checkout", "checkin")
    else:
        events.ignore(_trace)


def _trace(kind: str, pool: Any, facts: dict[str, Any]) -> None:
    if here.is_telling:  # a handler that writes through the ORM would have more to tell each time
        return
    lease = facts["lease"]
    holder = f"alias '{lease.alias}', thread {lease.thread.name}, {format_work(lease) or 'no scope'}"
    if kind == "checkout":
        say(logging.DEBUG, "Pool %s: checkout (%s).", pool.name, holder)
        return
    fate = "kept" if facts["keep"] else f"to be closed: {lease.session.history.close_reason}"
    say(logging.DEBUG, "Pool %s: checkin after %.1f ms (%s), %s.", pool.name, 1000 * facts["seconds"], holder, fate)
