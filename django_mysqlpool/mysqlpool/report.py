"""What a pool tells people: its numbers, who holds its connections, and why there was none."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable
from traceback import StackSummary
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from .errors import PoolTimeout
from .faults import Fault, fault_of
from .queue import SlotPool, TooManyWaiting
from .statements import kind_of

if TYPE_CHECKING:
    from .lease import Lease
    from .pool import Pool

logger = logging.getLogger("django_mysqlpool")

#: Frames of a checkout's stack that are kept, the innermost.
DEPTH = 40
#: Holders that are told, those that have held longest.
TOLD = 10
_MACHINERY = re.compile(r"[/\\](django_mysqlpool[/\\]mysqlpool|django[/\\](db|utils)|asgiref)[/\\]")

#: A checkout's stack, the innermost frame first: no frame, and so no variable, is kept alive by it.
Stack = tuple[tuple[CodeType, int], ...]


def stack_of_caller() -> Stack:
    """The stack without the lines' texts, which are read only when it is told."""
    frame: FrameType | None = sys._getframe(1)
    stack: list[tuple[CodeType, int]] = []
    while frame is not None and len(stack) < DEPTH:
        stack.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(stack)


def told_stack(stack: Stack) -> str:
    """The stack as a traceback shows one, down to the code that asked Django for the connection."""
    entries = [(code.co_filename, line, code.co_name, None) for code, line in reversed(_without_machinery(stack))]
    return "".join(StackSummary.from_list(entries).format()).rstrip()


def _without_machinery(stack: Stack) -> Stack:
    """The stack less the frames of ours and Django's in which the checkout happened."""
    inner = next((n for n, (code, _) in enumerate(stack) if not _MACHINERY.search(code.co_filename)), 0)
    return stack[inner:]


def told_holder(lease: Lease, now: float) -> str:
    """Who has a connection: the thread, for how long, for which request or task, and what it last sent."""
    parts = [f"{lease.thread.name} for {now - lease.since:.1f} s"]
    work = lease.scope.told_work() if lease.scope is not None else None
    if work:
        # What comes from outside may try to break the line of a log.
        parts.append(f"in {work.encode('unicode_escape').decode()}")
    kind = kind_of(lease.statement)
    parts.append(f"last statement: {kind}" if kind else "no statement yet")
    return ", ".join(parts)


def holders(leases: Iterable[Lease], at_most: int = TOLD) -> list[str]:
    """Those who have connections, the longest first."""
    now = time.monotonic()
    by_age = sorted(leases, key=lambda lease: lease.since)
    told = [told_holder(lease, now) for lease in by_age[:at_most]]
    if len(by_age) > at_most:
        told.append(f"{len(by_age) - at_most} more")
    return told


def told_place(stack: Stack) -> str:
    """Where in the user's code a checkout happened."""
    code, line = _without_machinery(stack)[0]
    return f"{code.co_filename}:{line}, in {code.co_name}"


def forgotten(lease: Lease) -> None:
    """Log a connection that its thread never gave back."""
    logger.warning(
        "A connection of alias '%s' was never given back by thread '%s'%s; what it left open is rolled back.",
        lease.alias,
        lease.thread.name,
        f", which checked it out at {told_place(lease.stack)}" if lease.stack else "",
    )


def leak(lease: Lease, leak_after: float) -> None:
    """Log a connection that has been out for longer than ``leak_after`` seconds."""
    logger.warning(
        "A connection of alias '%s' has been out for longer than leak_after = %g s, by %s. It was checked out here:\n%s",
        lease.alias,
        leak_after,
        told_holder(lease, time.monotonic()),
        told_stack(lease.stack or ()),
    )


def leak_has_ended(lease: Lease) -> None:
    """Log that such a connection is back after all."""
    logger.warning(
        "The connection of alias '%s' that thread '%s' had for longer than leak_after is back after %.1f s.",
        lease.alias,
        lease.thread.name,
        time.monotonic() - lease.since,
    )


def pool_timeout(pool: Pool, alias: str, error: Exception | None, last_connect_error: Exception | None) -> PoolTimeout:
    """The exception for a checkout that ``error`` ended: what happened, to whom, and what to change."""
    status = pool.status()
    sentences = [
        f"No connection for alias '{alias}' (pool {pool.name}): {_reason(pool, error)}.",
        f"The cap is {status['cap']}: {status['out']} out, {status['idle']} idle, {status['waiting']} waiting.",
    ]
    leases = pool.leases()
    if leases:
        sentences.append(f"Held by {'; '.join(holders(leases))}.")
    if last_connect_error is not None:
        sentences.append(f"The last attempt to connect failed: {last_connect_error}.")
    sentences.append(_advice(last_connect_error))
    told = sorted(leases, key=lambda lease: lease.since)[:TOLD] if pool.options.leak_after is not None else []
    stacks = [f"{lease.thread.name} checked out here:\n{told_stack(lease.stack)}" for lease in told if lease.stack]
    return PoolTimeout("\n".join([" ".join(sentences), *stacks]))


def _advice(last_connect_error: Exception | None) -> str:
    if last_connect_error is not None and fault_of(last_connect_error) is Fault.FULL:
        return "Raise the limit that the server names, or run fewer processes, or give each a smaller pool."
    return (
        "Give connections back sooner (ConnectionReleaseMiddleware, auto_close_db), or raise pool_size or "
        "max_overflow in OPTIONS['pool'], as far as the server's max_connections allows."
    )


def _reason(pool: Pool, error: Exception | None) -> str:
    if isinstance(error, TooManyWaiting):
        return f"max_waiting = {pool.options.arguments['max_waiting']} threads wait for one already"
    return f"none came free within timeout = {pool.timeout:g} s"


def status(pool: Pool, sqlalchemy_pool: Any) -> dict[str, Any]:
    """The numbers of this moment, as ``pool_status()`` shows them."""
    size = getattr(sqlalchemy_pool, "size", None)
    sessions = pool.sessions.copy()
    out = sum(session.lease is not None for session in sessions)
    return {
        "aliases": sorted(pool.aliases.copy()),
        "pool_class": pool.options.pool_class_name,
        "cap": pool.cap,
        "size": size() if callable(size) else size,
        "open": len(sessions),
        "idle": len(sessions) - out,
        "out": out,
        "waiting": sqlalchemy_pool.waiting() if isinstance(sqlalchemy_pool, SlotPool) else 0,
        "pins": dict(pool.pins),
    }
