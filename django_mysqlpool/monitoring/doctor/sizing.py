"""How large a pool should be: from the number of workers and threads, and from what the server has room for."""

from __future__ import annotations

import math
import os
import shlex
from argparse import ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from django_mysqlpool.middleware.asgi import DEFAULT_THREADS
from django_mysqlpool.monitoring.terminal import counted

from .facts import AliasFacts

#: The part of ``max_connections`` that is left to others, if they do not use more now.
RESERVE = 0.1


@dataclass(frozen=True)
class Crew:
    """The processes and threads that use a pool; ``None``: not known."""

    #: On each host.
    workers: int | None = None
    #: In each process, that may want a connection at once.
    threads: int | None = None
    hosts: int = 1
    #: Where the numbers come from, in words.
    source: str = ""

    @property
    def processes(self) -> int | None:
        return None if self.workers is None else self.workers * self.hosts


class _Arguments(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _of_gunicorn(arguments: str) -> tuple[int | None, int | None]:
    """The workers and threads that gunicorn's own parser would read; it knows no abbreviations."""
    parser = _Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-k", "--worker-class", default="sync")
    parser.add_argument("--worker-connections", type=int, default=1000)
    try:
        found, _ = parser.parse_known_args(shlex.split(arguments))
    except (ValueError, ArgumentError):
        return None, None
    if "gevent" in found.worker_class or "eventlet" in found.worker_class:
        return found.workers, found.worker_connections
    if "uvicorn" in found.worker_class.lower() or found.worker_class == "asgi":
        return found.workers, DEFAULT_THREADS
    return found.workers, found.threads or 1


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) else None


def crew_of(environment: Mapping[str, str] = os.environ) -> Crew:
    """Read how many workers and threads a web server of this environment has.

    gunicorn reads ``GUNICORN_CMD_ARGS``, and ``WEB_CONCURRENCY`` if nothing else says ``workers`` (its settings page says
    so). uvicorn reads ``UVICORN_WORKERS``, as it does with all its options, and then ``WEB_CONCURRENCY``. What stands in
    their command lines and in ``gunicorn.conf.py`` is not seen here.
    """
    common = _number(environment.get("WEB_CONCURRENCY"))
    if environment.get("GUNICORN_CMD_ARGS"):
        workers, threads = _of_gunicorn(environment["GUNICORN_CMD_ARGS"])
        source = "GUNICORN_CMD_ARGS" if workers or not common else "GUNICORN_CMD_ARGS and WEB_CONCURRENCY"
        return Crew(workers or common or 1, threads, source=source)
    own = _number(environment.get("UVICORN_WORKERS"))
    if own:
        return Crew(own, DEFAULT_THREADS, source="UVICORN_WORKERS")
    return Crew(common, None, source="WEB_CONCURRENCY") if common else Crew()


@dataclass(frozen=True)
class Room:
    """The connections that a server and an account have, and the pools of a process that share them."""

    #: ``max_connections``, less what others use, or a reserve for them if that is more.
    of_server: int
    #: ``None``: the account has no limit of its own.
    of_account: int | None
    #: The caps of the pools on this server, and of those that use the account there too; ``None``: no limit.
    caps_on_server: Sequence[int | None]
    caps_of_account: Sequence[int | None]

    @property
    def least(self) -> int:
        """For this account's connections."""
        return self.of_server if self.of_account is None else min(self.of_server, self.of_account)

    @property
    def processes(self) -> int:
        """How many have room for all that their pools may open."""
        fits = self.of_server // max(_sum(self.caps_on_server), 1)
        if self.of_account is not None:
            fits = min(fits, self.of_account // max(_sum(self.caps_of_account), 1))
        return fits

    def share(self, processes: int) -> int:
        """Of each pool in each process, if all get as many."""
        share = self.of_server // (processes * len(self.caps_on_server))
        if self.of_account is not None:
            share = min(share, self.of_account // (processes * len(self.caps_of_account)))
        return share


def _sum(caps: Sequence[int | None]) -> int:
    return sum(cap or 0 for cap in caps)


def room_for(facts: AliasFacts, others: Sequence[AliasFacts]) -> Room:
    """The room for an alias whose server has answered.

    :param facts: of the alias
    :param others: of all aliases, this one included
    """
    assert facts.server is not None
    assert facts.account is not None
    place, name = (facts.server.host, facts.server.port), facts.account.name
    neighbours = [one for one in others if one.server and (one.server.host, one.server.port) == place]
    own = {one.account.name: one.own_connections for one in neighbours if one.account}
    most = facts.server.max_connections
    reserve = max(facts.server.connections - sum(own.values()), math.ceil(RESERVE * most))
    # (Aliases may share a pool.)
    on_server = {one.pool.name: one.pool.cap for one in neighbours if one.pool}
    of_account = {
        one.pool.name: one.pool.cap for one in neighbours if one.pool and one.account and one.account.name == name
    }
    return Room(max(most - reserve, 0), facts.account.max_connections, [*on_server.values()], [*of_account.values()])


@dataclass(frozen=True)
class Proposal:
    """A size for a pool."""

    pool_size: int
    max_overflow: int
    #: Connections of this pool in all processes together.
    total: int
    #: The calculation, in words.
    why: str


def propose(crew: Crew, room: Room) -> Proposal | None:
    """Propose a size: a connection for each thread, if the server has room for that.

    :param crew: who uses the pool
    :param room: what the server and the account have
    :returns: the proposal; ``None`` if the number of workers is not known, or there is room for less than one connection
        a pool
    """
    if crew.processes is None or (share := room.share(crew.processes)) < 1:
        return None
    size = min(crew.threads or share, share)
    by = counted(crew.processes, "process", "processes")
    if len(room.caps_on_server) > 1:
        by += f" and {len(room.caps_on_server)} pools in each"
    if crew.threads is None:
        wanted = "how many threads a process has is not known"
    elif crew.threads > share:
        wanted = f"a process has {crew.threads} threads, some of which may have to wait"
    else:
        wanted = f"a process has {counted(crew.threads, 'thread')}, and needs no more than a connection for each"
    why = f"There is room for {counted(room.least, 'connection')}: for {share} each with {by}; {wanted}."
    return Proposal(size, 0, size * crew.processes, why)
