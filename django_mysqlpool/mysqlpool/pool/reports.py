"""Messages for people: a pool's numbers, who holds its connections, and why there was none."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from django_mysqlpool.mysqlpool.errors import OF_USERS_CLASSES, PoolTimeout
from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.statements import kind_of

from .connection import Lease
from .faults import Fault, fault_of
from .stacks import format_place, format_stack, memory
from .waiters import QueueFull

#: Holders that are told, those that have held longest.
TOLD = 10
#: Seconds between two warnings about one place in the code that forgets connections: the first pause, and the longest; each
#: is twice the last.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 3600.0
#: Places in the code that are remembered for having forgotten connections.
PLACES = 1000


def format_holder(lease: Lease, now: float) -> str:
    """Who has a connection: the thread, for how long, for which request or task, and what it last sent."""
    parts = [f"{lease.thread.name} for {now - lease.checked_out_at:.1f} s"]
    work = format_work(lease)
    if work:
        parts.append(f"in {work}")
    kind = kind_of(lease.statement)
    parts.append(f"last statement: {kind}" if kind else "no statement yet")
    return ", ".join(parts)


def format_work(lease: Lease) -> str | None:
    """The request or task that a connection was taken for."""
    work = lease.scope.format_work() if lease.scope is not None else None
    # What comes from outside may try to break the line of a log.
    return work.encode("unicode_escape").decode() if work else None


def holders(leases: Iterable[Lease], at_most: int = TOLD) -> list[str]:
    """Those who have connections, the longest first."""
    now = time.monotonic()
    by_age = sorted(leases, key=lambda lease: lease.checked_out_at)
    told = [format_holder(lease, now) for lease in by_age[:at_most]]
    if len(by_age) > at_most:
        told.append(f"{len(by_age) - at_most} more")
    return told


class _Place:
    """A place in the code that forgets connections of an alias."""

    __slots__ = ("count", "last", "next_at", "pause")

    def __init__(self) -> None:
        self.count = itertools.count(1)
        #: The arguments of the next warning, which waits for ``next_at``.
        self.last: tuple[object, ...] | None = None
        #: ``time.monotonic()``
        self.next_at = 0.0
        self.pause = FIRST_PAUSE

    def tell(self, now: float) -> None:
        last, self.last = self.last, None
        if last is not None:
            self.next_at = now + self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            say(logging.WARNING, "A connection of alias '%s' was never given back by thread '%s'%s%s.%s%s", *last)


# By alias and place; first in, first out. Without a lock: it may be the garbage collector that tells of one.
_places: dict[tuple[str, str], _Place] = {}


def forgotten(lease: Lease) -> None:
    """Log a connection that its thread never returned: one line for a place in the code, again after growing pauses."""
    place = format_place(lease.stack) if lease.stack else ""
    is_place_missed = not place and lease.scope is None
    if is_place_missed:
        memory.keeps_all = True
    found = _places.setdefault((lease.alias, place), _Place())
    times = next(found.count)
    found.last = (
        lease.alias,
        lease.thread.name,
        f", which checked it out at {place}" if place else "",
        "; what it left open is rolled back" if _left_something_open(lease) else "",
        f" It is number {times} from there." if times > 1 and place else "",
        " Where it was checked out is not known; of the next one it will be told." if is_place_missed else "",
    )
    if len(_places) > PLACES:
        with suppress(RuntimeError, StopIteration):  # another thread does the same
            _places.pop(next(iter(_places)), None)
    now = time.monotonic()
    if now >= found.next_at:
        found.tell(now)


def tell_forgotten() -> None:
    """Log what has been forgotten since, if a place's pause is over; the maintenance thread calls it in each round."""
    now = time.monotonic()
    for place in tuple(_places.copy().values()):
        if place.last is not None and now >= place.next_at:
            place.tell(now)


def _left_something_open(lease: Lease) -> bool:
    try:
        return lease.statement is not None and lease.session.needs_server_to_clean()
    except (lease.session.driver.error_class, ReferenceError):  # the connection is closed
        return False


#: The leases that have been reported to be out for longer than ``leak_after``.
leaking: set[Lease] = set()


def leak(lease: Lease, leak_after: float) -> bool:
    """Log, once, a connection that has been out for longer than ``leak_after`` seconds.

    :returns: ``False`` if that was done before
    """
    if lease in leaking:
        return False
    leaking.add(lease)
    say(
        logging.WARNING,
        "A connection of alias '%s' has been out for longer than leak_after = %g s, by %s. It was checked out here:\n%s",
        lease.alias,
        leak_after,
        format_holder(lease, time.monotonic()),
        format_stack(lease.stack or ()),
    )
    return True


def note_return(lease: Lease) -> None:
    """Log that a connection that was reported is back after all."""
    if lease not in leaking:
        return
    leaking.discard(lease)
    say(
        logging.WARNING,
        "The connection of alias '%s' that thread '%s' had for longer than leak_after is back after %.1f s.",
        lease.alias,
        lease.thread.name,
        time.monotonic() - lease.checked_out_at,
    )


def reason_for(error: Exception, timeout: float) -> str:
    """Tell why a checkout failed: by ``QueueFull`` or ``SlotTimeout``."""
    if isinstance(error, QueueFull):
        return f"max_waiting = {error} threads wait for one already"
    if math.isinf(timeout):  # a class of the user's own
        return f"none came free ({error})"
    return f"none came free within timeout = {timeout:g} s"


def pool_timeout(
    alias: str,
    pool_name: str,
    reason: str,
    status: dict[str, Any],
    leases: list[Lease],
    *,
    last_connect_error: Exception | None,
    with_stacks: bool,
) -> PoolTimeout:
    """Make the exception for a checkout that failed: what happened, to whom, and what to change.

    :param status: the numbers of ``pool_status()``
    :param leases: the connections that are out
    :param last_connect_error: of an attempt to connect during the checkout
    :param with_stacks: tell where the connections were checked out
    """
    sentences = [
        f"No connection for alias '{alias}' (pool {pool_name}): {reason}.",
        f"The cap is {status['cap']}: {_numbers(status)}.",
    ]
    if leases:
        sentences.append(f"Held by {'; '.join(holders(leases))}.")
    if last_connect_error is not None:
        sentences.append(f"The last attempt to connect failed: {_told_error(last_connect_error)}.")
    sentences.append(_advice(status, last_connect_error))
    told = sorted(leases, key=lambda lease: lease.checked_out_at)[:TOLD] if with_stacks else []
    stacks = [f"{lease.thread.name} checked out here:\n{format_stack(lease.stack)}" for lease in told if lease.stack]
    return PoolTimeout(
        "\n".join([" ".join(sentences), *stacks]),
        alias=alias,
        holders=holders(leases, at_most=len(leases)),
        **{key: status[key] for key in ("cap", "out", "idle", "opening", "waiting")},
    )


def _numbers(status: dict[str, Any]) -> str:
    opening = f"{status['opening']} being opened, " if status["opening"] else ""
    return f"{status['out']} out, {status['idle']} idle, {opening}{status['waiting']} waiting"


def _told_error(error: Exception) -> str:
    try:
        return str(error) or type(error).__name__
    except OF_USERS_CLASSES:
        return type(error).__name__


def _advice(status: dict[str, Any], last_connect_error: Exception | None) -> str:
    if last_connect_error is not None and fault_of(last_connect_error) is Fault.FULL:
        return "Raise the limit that the server names, or run fewer processes, or give each a smaller pool."
    out, opening, cap = status["out"], status["opening"], status["cap"]
    if (opening and opening >= out) or (last_connect_error is not None and (cap is None or out < cap)):
        return (
            "Connections can't be opened, or not in time: look at the server, its address, and the network between. "
            "A larger pool does not help."
        )
    return (
        "Give connections back sooner (ConnectionReleaseMiddleware, auto_close_db), or raise pool_size or "
        "max_overflow in OPTIONS['pool'], as far as the server's max_connections allows."
    )
