"""The numbers of a pool, for people and for monitoring."""

from __future__ import annotations

from operator import attrgetter
from time import monotonic
from typing import Any, Protocol

from django_mysqlpool.mysqlpool.statements import kind_of

from . import sizing
from .connection import Session
from .connector import Connector
from .reclaim import Reclaimer
from .reports import format_work
from .server import ServerFacts
from .statistics import Statistics


class CountedPool(Protocol):
    """A pool, as far as its numbers are concerned."""

    options: Any
    aliases: Any
    source: Any
    connector: Connector
    reclaimer: Reclaimer
    server: ServerFacts
    statistics: Statistics

    @property
    def sessions(self) -> set[Session]: ...


def status_of(pool: CountedPool) -> dict[str, Any]:
    """The numbers of this moment, as ``pool_status()`` shows them; takes no lock."""
    sessions = pool.sessions.copy()
    out = sum(session.lease is not None for session in sessions)
    opening = len(pool.connector.opening)  # after the sessions: what has just been opened is counted once
    return {
        "aliases": sorted(pool.aliases.names()),
        "address": pool.server.address,
        "pool_class": pool.options.pool_class_name,
        "cap": pool.source.cap,
        "size": pool.source.size(),
        "open": len(sessions),
        "idle": len(sessions) - out,
        "out": out,
        "opening": opening,
        "waiting": pool.source.waiting(),
        "pins": pool.statistics.pins,
    }


def statistics_of(pool: CountedPool) -> dict[str, Any]:
    """The counts since the pool was made, as ``pool_statistics()`` shows them."""
    status = status_of(pool)
    counts = pool.statistics.snapshot()
    return {
        **{key: status[key] for key in ("aliases", "address", "cap", "opening", "waiting")},
        "age": monotonic() - pool.statistics.made_at,
        **counts,
        "advice": sizing.advice(pool.statistics.last_minutes(counts), status["cap"]),
    }


def holders_of(pool: CountedPool) -> list[dict[str, Any]]:
    """Those who have connections, the longest first."""
    now = monotonic()
    return [
        {
            "alias": lease.alias,
            "thread": lease.thread.name,
            "seconds": now - lease.checked_out_at,
            "work": format_work(lease),
            "last_statement": kind_of(lease.statement),
        }
        for lease in sorted(pool.reclaimer.leases(), key=attrgetter("checked_out_at"))
    ]
