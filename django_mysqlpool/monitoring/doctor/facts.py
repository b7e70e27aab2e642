"""What there is to know about an alias, its server and its account."""

from __future__ import annotations

from dataclasses import dataclass, field

from .connecting import Problem


@dataclass
class Tls:
    """How the connection is encrypted; ``None``: it is not."""

    version: str | None
    cipher: str | None
    #: The alias' OPTIONS ask for it.
    is_asked_for: bool


@dataclass
class Times:
    """In seconds, each the median of several; ``None``: it could not be measured."""

    connect: float
    reset: float | None
    round_trip: float


@dataclass
class Server:
    """What the server says of itself."""

    version: str
    is_mariadb: bool
    #: As it calls itself: behind a proxy it is another one than in HOST.
    host: str
    port: int | None
    #: Nobody but an administrator may write: it is a replica.
    is_read_only: bool
    #: Seconds.
    wait_timeout: int
    max_connections: int
    connections: int
    #: Since its start.
    most_connections: int
    #: Since its start, because it was full; ``None``: it does not count them. (MariaDB 10.11 counts, and always says 0.)
    refused_as_full: int | None
    #: Seconds.
    uptime: int
    #: It looks for the name of each host that connects.
    resolves_names: bool


@dataclass
class Account:
    """The account, and its limits."""

    name: str
    #: At once, of all processes; ``None``: no limit.
    max_connections: int | None
    #: By their names, such as ``MAX_QUERIES_PER_HOUR``.
    hourly_limits: dict[str, int]
    #: It has the privilege PROCESS, or sees other accounts' connections nevertheless.
    sees_others: bool


@dataclass
class Users:
    """The connections of one account from one host."""

    user: str
    host: str
    connections: int
    #: Those that are in the middle of a statement.
    active: int


@dataclass
class PoolFacts:
    """The alias' pool, as its settings have it."""

    name: str
    pool_class: str
    #: ``pool_size``, and the most connections of one process; ``None``: no limit, or none that is known.
    size: int | None
    cap: int | None
    #: Seconds, -1, or ``None``.
    recycle: float | None
    release: str


@dataclass
class AliasFacts:
    """What was found out about an alias; what follows ``problem`` is there if it is ``None``."""

    alias: str
    pool: PoolFacts | None = None
    problem: Problem | None = None
    #: The server's, as this machine sees it.
    address: str | None = None
    is_local: bool = False
    tls: Tls | None = None
    times: Times | None = None
    server: Server | None = None
    account: Account | None = None
    users: list[Users] = field(default_factory=list)
    #: Of this account, on all hosts.
    own_connections: int = 0

    @property
    def connections_of_others(self) -> int:
        """Those of all other accounts, seen or not."""
        return max(self.server.connections - self.own_connections, 0) if self.server else 0
