"""Judges the facts of an alias: what is wrong or risky, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django_mysqlpool.monitoring.terminal import counted

from .facts import AliasFacts
from .sizing import Crew, Room

#: From the least to the worst.
LEVELS = ("info", "warning", "error")

#: Seconds of a way to the server and back, and of a connect, that are told as long.
LONG_ROUND_TRIP, LONG_CONNECT = 0.005, 0.1
#: Seconds of ``wait_timeout`` below which a request that computes for a while loses its connection.
SHORT_WAIT_TIMEOUT = 60
#: The part of ``max_connections`` from which on a server counts as nearly full.
NEARLY_FULL = 0.85


@dataclass(frozen=True)
class Finding:
    """Something wrong, risky or worth knowing."""

    #: One of ``LEVELS``.
    level: str
    #: For machines, and for a search.
    id: str
    what: str
    #: What to change.
    change: str


def findings_of(facts: AliasFacts, crew: Crew, room: Room | None) -> list[Finding]:
    """Judge an alias, the worst first.

    :param facts: of the alias
    :param crew: who uses its pool
    :param room: what its server has; ``None``: it has not answered
    """
    if facts.problem is not None or room is None:
        assert facts.problem is not None
        found = [Finding("error", "cannot-connect", facts.problem.what, facts.problem.change)]
    else:
        found = [*_of_tls(facts), *_of_size(facts, crew, room), *_of_server(facts), *_of_life(facts), *_of_account(facts)]
    return sorted(found, key=lambda finding: -LEVELS.index(finding.level))


def _of_tls(facts: AliasFacts) -> Iterator[Finding]:
    assert facts.tls is not None
    if facts.tls.cipher is not None:
        return
    if facts.tls.is_asked_for:
        yield Finding(
            "error",
            "tls-not-used",
            "OPTIONS ask for TLS, and the connection is in clear text.",
            "A client library may take 'ssl_mode' for a wish: give 'ssl': {'ca': ...} in OPTIONS, and REQUIRE SSL to the "
            "account, so that the server refuses such a connection.",
        )
    elif not facts.is_local:
        yield Finding(
            "warning",
            "no-tls",
            f"The connection to {facts.address} is in clear text.",
            "Unless the network is your own: give 'ssl': {'ca': ...} in OPTIONS, and REQUIRE SSL to the account.",
        )


def _of_size(facts: AliasFacts, crew: Crew, room: Room) -> Iterator[Finding]:
    assert facts.pool is not None
    cap = facts.pool.cap
    if cap is None:
        yield Finding(
            "warning",
            "no-cap",
            "The pool has no limit: pool_size is 0, max_overflow is -1, or its class has none.",
            "Set pool_size and max_overflow in OPTIONS['pool'].",
        )
        return
    yield from _of_room(crew, "server", "max_connections", room.caps_on_server, room.of_server)
    if room.of_account is not None:
        yield from _of_room(crew, "account", "the account's MAX_USER_CONNECTIONS", room.caps_of_account, room.of_account)
    if crew.threads is not None and cap < crew.threads and facts.pool.release == "request":
        share = crew.threads if crew.processes is None else min(crew.threads, room.share(crew.processes))
        more = f"Raise pool_size and max_overflow to {share} in all, " if share > cap else ""
        fewer = "run fewer threads, or " if share < crew.threads else "or "
        change = f'{more}{fewer}set release = "transaction".'
        yield Finding(
            "warning",
            "cap-under-threads",
            f"{crew.threads} threads of a process share {counted(cap, 'connection')}: some may have to wait.",
            change[0].upper() + change[1:],
        )
    if crew.threads is not None and cap > crew.threads:
        yield Finding(
            "info",
            "cap-over-threads",
            f"A process has {counted(crew.threads, 'thread')}, and never needs {cap} connections unless a request starts "
            "threads of its own.",
            "A smaller max_overflow says so.",
        )
    if crew.processes is None:
        yield Finding(
            "info",
            "workers-unknown",
            f"How many processes there are is not known. There is room for {room.processes} like this one.",
            "Give --workers and --threads.",
        )


def _of_room(crew: Crew, whose: str, limit: str, caps: Sequence[int | None], room: int) -> Iterator[Finding]:
    """Judge the sum of the caps of all processes' pools that share a limit."""
    processes = crew.processes or 1
    total = processes * sum(cap or 0 for cap in caps)
    if total <= room:
        return
    shared = "" if len(caps) == 1 else f" with {len(caps)} pools on this {whose}"
    yield Finding(
        "error" if room < processes * len(caps) else "warning",
        f"cap-over-{whose}",
        f"{counted(processes, 'process', 'processes')}{shared} may want {counted(total, 'connection')}, and the {whose} "
        f"has room for {room}: beyond that, requests wait until another process yields a connection.",
        f"Lower pool_size and max_overflow, run fewer processes, or raise {limit}.",
    )


def _of_server(facts: AliasFacts) -> Iterator[Finding]:
    server, times = facts.server, facts.times
    assert server is not None
    assert times is not None
    if server.is_read_only:
        yield Finding(
            "warning",
            "read-only",
            f"The server {server.host} takes no writes: it is a replica, or set to read_only.",
            "If this alias is to write, correct HOST, or look why the server is read-only.",
        )
    if server.connections >= NEARLY_FULL * server.max_connections:
        yield Finding(
            "warning",
            "nearly-full",
            f"The server has {server.connections} connections, of {server.max_connections} at most.",
            "Look below at who has them; raise max_connections, or give the others smaller pools.",
        )
    if server.refused_as_full or server.most_connections >= server.max_connections:
        refused = f", and has refused {server.refused_as_full}" if server.refused_as_full else ""
        yield Finding(
            "warning",
            "was-full",
            f"Since its start {format_age(server.uptime)} ago the server has had {server.most_connections} connections at "
            f"once{refused}; max_connections is {server.max_connections}.",
            "Raise max_connections, or lower the sum of the pools' sizes.",
        )
    if times.round_trip > LONG_ROUND_TRIP:
        yield Finding(
            "info",
            "far-away",
            f"The way to the server and back takes {times.round_trip * 1000:.1f} ms, which each query costs.",
            "Move the two closer together, if that can be.",
        )
    if times.connect > LONG_CONNECT:
        names = " The server looks for the name of each host that connects: set skip_name_resolve." * server.resolves_names
        yield Finding(
            "info",
            "slow-connect",
            f"To connect takes {times.connect * 1000:.0f} ms.",
            f"Set min_idle in OPTIONS['pool'], so that connections are there before a rush.{names}",
        )


def _of_life(facts: AliasFacts) -> Iterator[Finding]:
    assert facts.server is not None
    assert facts.pool is not None
    wait_timeout, recycle = facts.server.wait_timeout, facts.pool.recycle
    if recycle is not None and (recycle == -1 or recycle > wait_timeout):
        is_told = "is -1 (no limit)" if recycle == -1 else f"is {recycle:g} s"
        yield Finding(
            "warning",
            "recycle-over-wait-timeout",
            f"recycle {is_told}, and the server ends a connection that was idle for its wait_timeout of {wait_timeout} s.",
            "Leave recycle out: it then follows the server.",
        )
    if wait_timeout < SHORT_WAIT_TIMEOUT:
        yield Finding(
            "warning",
            "short-wait-timeout",
            f"The server ends a connection that sends nothing for {wait_timeout} s, also in the middle of a request.",
            f"Raise wait_timeout, to {SHORT_WAIT_TIMEOUT} s at least.",
        )


def _of_account(facts: AliasFacts) -> Iterator[Finding]:
    account, server = facts.account, facts.server
    assert account is not None
    assert server is not None
    if account.hourly_limits:
        limits = ", ".join(f"{name} {value}" for name, value in account.hourly_limits.items())
        yield Finding(
            "warning",
            "hourly-limits",
            f"The account has hourly limits ({limits}); opening a connection counts, and so does a reset.",
            "ALTER USER ... WITH MAX_USER_CONNECTIONS limits what matters, and the hourly limits can be 0.",
        )
    if account.max_connections is None:
        yield Finding(
            "info",
            "no-account-limit",
            "The account has no limit of its own, so it can use up the server for all others.",
            "ALTER USER ... WITH MAX_USER_CONNECTIONS n is the cap of all processes together.",
        )
    if not account.sees_others and facts.connections_of_others:
        yield Finding(
            "info",
            "no-process-privilege",
            "The privilege PROCESS is missing, and connections of other accounts are not listed: "
            f"there are {facts.connections_of_others}.",
            "GRANT PROCESS ON *.* to see them, or ask as an administrator.",
        )


def format_age(seconds: float) -> str:
    """A time for people, in its largest unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
