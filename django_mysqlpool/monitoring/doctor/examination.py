"""Asks a server, over connections of its own beside the pool, what matters to a pool."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import Any

from django.db import connections

from django_mysqlpool.checks.database import asks_for_tls
from django_mysqlpool.mysqlpool.drivers.sockets import peer_of
from django_mysqlpool.mysqlpool.functions import is_mariadb
from django_mysqlpool.mysqlpool.masking import ConnectionParams

from .connecting import problem_of
from .facts import Account, AliasFacts, PoolFacts, Server, Times, Tls, Users

#: How often it connects and resets, one after the other; and how often it asks for nothing, to time the way there and back.
CONNECTS, RESETS, ROUND_TRIPS = 5, 5, 21
#: Seconds that connecting, and an answer, may take.
TIMEOUT = 10

_VARIABLES = (
    "hostname port version_comment wait_timeout max_connections max_user_connections read_only skip_name_resolve"
).split()
_COUNTERS = (
    "Threads_connected Max_used_connections Connection_errors_max_connections Ssl_cipher Ssl_version Uptime"
).split()
#: What goes for a server that does not say (a proxy, perhaps): the most that ``max_connections`` can be, and the default of
#: ``wait_timeout``.
_MOST_CONNECTIONS, _WAIT_TIMEOUT = 100_000, 28_800
#: Threads of the server's own, which are no connections.
_OWN_THREADS = {"system user", "event_scheduler"}


class NoAnswer(Exception):
    """The server has not answered in time."""


def pooled_aliases() -> list[str]:
    """The aliases with a pool, those with wrong options among them."""
    return [alias for alias in connections if _may_be_pooled(alias)]


def _may_be_pooled(alias: str) -> bool:
    try:
        wrapper = connections[alias]
    except Exception:  # of the alias' settings, which examine() tells
        return True
    return any(getattr(wrapper, name, None) is not None for name in ("pool_options", "wrong_options"))


def examine(alias: str) -> AliasFacts:
    """Find out what there is to know about an alias. No error is raised: it is a fact, too."""
    facts = AliasFacts(alias)
    try:
        wrapper: Any = connections.create_connection(alias)
        wrapper.refuse_wrong_options()
        pool = wrapper.pool
        facts.pool = PoolFacts(
            pool.name,
            pool.options.pool_class_name,
            pool.source.size(),
            pool.cap,
            pool.options.recycle,
            pool.options.release,
        )
        _Examination(facts, wrapper).run()
    except Exception as error:
        facts.problem = problem_of(error)
    return facts


class _Examination:
    """Fills the facts of an alias, over one connection at a time."""

    def __init__(self, facts: AliasFacts, wrapper: Any) -> None:
        self._facts = facts
        self._wrapper = wrapper
        self._driver = wrapper.driver
        given = wrapper.get_connection_params()
        bounds = {name: TIMEOUT for name in ("read_timeout", "write_timeout") if not given.get(name)}
        bounds["connect_timeout"] = min(given.get("connect_timeout") or TIMEOUT, TIMEOUT)
        self._params = ConnectionParams(given, **bounds)
        self._connection: Any = None

    def run(self) -> None:
        connect_times = [self._connect()]
        try:
            self._ask_everything()
            round_trips = [_timed(lambda: self._rows("SELECT 1")) for _ in range(ROUND_TRIPS)]
            resets: list[float] = []
            # (An account's hourly limit may end either; what was measured stays.)
            with suppress(self._driver.error_class):
                for _ in range(RESETS):
                    resets.append(_timed(self._reset))  # noqa: PERF401 - those before an error count
            with suppress(self._driver.error_class):
                for _ in range(CONNECTS - 1):
                    self._close()
                    connect_times.append(self._connect())
        finally:
            self._close()
        self._facts.times = Times(median(connect_times), median(resets) if resets else None, median(round_trips))

    def _connect(self) -> float:
        def connect() -> None:
            self._connection = self._wrapper.open_connection(self._params)

        return _timed(connect)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(self._driver.error_class):
                self._driver.close(connection)

    def _reset(self) -> None:
        if not self._driver.reset(self._connection, self._params):
            raise self._driver.operational_error("option files: a connection is closed rather than reset")

    def _rows(self, query: str) -> list[list[str]]:
        rows = self._driver.ask(self._connection, query.encode(), TIMEOUT)
        if rows is None:
            raise NoAnswer(f"The server has not answered {query!r} within {TIMEOUT} s.")
        return [["" if value is None else str(value) for value in row] for row in rows]

    def _ask_everything(self) -> None:
        variables = self._named("SHOW VARIABLES", _VARIABLES)
        counters = self._named("SHOW STATUS", _COUNTERS)
        self._facts.address = peer_of(self._driver.descriptor(self._connection))
        self._facts.is_local = _is_local(self._facts.address)
        self._facts.tls = Tls(
            counters.get("ssl_version") or None,
            counters.get("ssl_cipher") or None,
            asks_for_tls(self._wrapper.settings_dict["OPTIONS"]) is not None,
        )
        self._facts.server = self._server(variables, counters)
        rights = self._rights()
        clients = self._clients()
        (name,) = self._rows("SELECT CURRENT_USER(), USER()")
        own_user = name[1].rpartition("@")[0]
        self._facts.users = _by_user_and_host(clients)
        own = self._facts.own_connections = sum(user == own_user for user, _, _ in clients)
        limits = {key: int(value) for key, value in re.findall(r"\b(MAX_\w+_PER_HOUR) (\d+)", rights) if int(value)}
        self._facts.account = Account(
            name[0],
            # (Each session is told the limit that goes for it: the account's own, or the server's for all accounts.)
            int(variables.get("max_user_connections") or 0) or None,
            limits,
            _has_process(rights) or own < len(clients),
        )

    def _named(self, show: str, names: list[str]) -> dict[str, str]:
        listed = ", ".join(f"'{name}'" for name in names)
        return {row[0].lower(): row[1] for row in self._rows(f"{show} WHERE Variable_name IN ({listed})")}

    def _server(self, variables: Mapping[str, str], counters: Mapping[str, str]) -> Server:
        version = self._connection.get_server_info()
        refused = counters.get("connection_errors_max_connections")
        return Server(
            version=f"{'MariaDB' if is_mariadb(version) else 'MySQL'} {version}",
            is_mariadb=is_mariadb(version),
            host=variables.get("hostname", ""),
            port=int(variables["port"]) if variables.get("port") else None,
            is_read_only=variables.get("read_only", "OFF") not in {"OFF", "0"},
            wait_timeout=int(variables.get("wait_timeout", _WAIT_TIMEOUT)),
            max_connections=int(variables.get("max_connections", _MOST_CONNECTIONS)),
            connections=int(counters.get("threads_connected", 0)),
            most_connections=int(counters.get("max_used_connections", 0)),
            refused_as_full=None if refused is None else int(refused),
            uptime=int(counters.get("uptime", 0)),
            resolves_names=variables.get("skip_name_resolve", "OFF") in {"OFF", "0"},
        )

    def _rights(self) -> str:
        """What the account may do, and its limits. The second answer has the hash of its password: it is not kept."""
        rights = ""
        for query in ("SHOW GRANTS", "SHOW CREATE USER CURRENT_USER()"):
            with suppress(self._driver.error_class):  # a proxy's, say
                rights += "\n".join(row[0] for row in self._rows(query)) + "\n"
        return rights

    def _clients(self) -> list[tuple[str, str, bool]]:
        """The user, the host and if it is active, of each connection that the account may see."""
        return [
            (row[1], _host(row[2]), row[4] != "Sleep")
            for row in self._rows("SHOW PROCESSLIST")
            if row[1] not in _OWN_THREADS and row[4] != "Daemon"
        ]


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _host(place: str) -> str:
    """Without the port, which a connection by a socket has not."""
    return re.sub(r":\d+$", "", place)


def _by_user_and_host(clients: list[tuple[str, str, bool]]) -> list[Users]:
    total = Counter((user, host) for user, host, _ in clients)
    active = Counter((user, host) for user, host, is_active in clients if is_active)
    return [Users(user, host, number, active[user, host]) for (user, host), number in total.most_common()]


def _has_process(rights: str) -> bool:
    found = re.findall(r"^GRANT (.+?) ON \*\.\* TO", rights, re.MULTILINE)
    return any(right.strip() in {"PROCESS", "ALL PRIVILEGES"} for listed in found for right in listed.split(","))


def _is_local(address: str | None) -> bool:
    """True if an address is on this machine; a socket's that tells none is a Unix socket's."""
    return address is None or address.startswith(("/", "\0", "127.", "[::1]"))
