"""``make benchmark``: what one request with one ORM query costs, on four engines, side by side in one run.

A cycle is checkout, one ORM query, checkin. It is run in a thread that is used again and in a new thread each time, plain
and, where the server answers with TLS, encrypted. Round trips are counted by a relay; times are taken without it, in rounds
that take turns, and told as ratios, since absolute times on a shared machine are noise.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from devtools.server import Server, server_from_environment
from tests.relay import Relay

DATABASE = "mysqlpool_benchmark"
console = Console(width=120)
_numbers = itertools.count()

ENGINES: dict[str, dict[str, Any]] = {
    "stock, new connection": {"ENGINE": "django.db.backends.mysql"},
    "stock, persistent": {"ENGINE": "django.db.backends.mysql", "CONN_MAX_AGE": None},
    "django-db-connection-pool": {"ENGINE": "dj_db_conn_pool.backends.mysql"},
    "django-mysqlpool": {"ENGINE": "django_mysqlpool.backends.mysqlpool"},
}
BASE = "stock, new connection"
PERSISTENT = "stock, persistent"


@dataclass
class Row:
    """What was measured of one engine."""

    microseconds: dict[str, list[float]] = field(default_factory=lambda: {"reused": [], "new": []})
    round_trips: dict[str, float] = field(default_factory=dict)

    def median(self, thread: str) -> float:
        return median(self.microseconds[thread])


def set_up(server: Server) -> None:
    """Django on the server, with a table to ask."""
    connection = server.connect()
    connection.query(f"DROP DATABASE IF EXISTS {DATABASE}")
    connection.query(f"CREATE DATABASE {DATABASE}")
    connection.close()
    os.environ["MYSQLPOOL_TEST_DATABASE"] = json.dumps(server.settings(DATABASE))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)


def add_aliases(server: Server, tls: bool, port: int) -> dict[str, str]:
    """An alias for each engine, by the engine's name in the table."""
    return {name: add_alias(server, tls, {**entry, "PORT": port}) for name, entry in ENGINES.items()}


def add_alias(server: Server, tls: bool, entry: dict[str, Any]) -> str:
    """Add a database alias to those of the process."""
    from django.db import connections

    alias = f"alias_{next(_numbers)}"
    options = {"ssl_mode": "REQUIRED" if tls else "DISABLED"}
    settings = {**server.settings(DATABASE, **options), **entry}
    databases = connections.configure_settings({"default": connections.settings["default"], alias: settings})
    connections.settings[alias] = databases[alias]
    return alias


def cycle(alias: str, keep: bool) -> Callable[[], None]:
    """What one request does; ``keep`` leaves the connection open, as Django does with a persistent one."""
    from django.db import connections

    from tests.shop.models import Account

    def run() -> None:
        Account.objects.using(alias).filter(name="nobody").first()
        if not keep:
            connections[alias].close()

    return run


def in_new_thread(action: Callable[[], None]) -> Callable[[], None]:
    """``action``, in a thread that it is the only work of, as a request under ASGI has it."""

    def run() -> None:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()

    return run


def microseconds(action: Callable[[], None], times: int) -> float:
    """The mean time of ``times`` runs."""
    gc.collect()
    begin = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - begin) / times * 1e6


def measure(server: Server, tls: bool, rounds: int, times: int, progress: Progress) -> dict[str, Row]:
    """Take the times of all engines in turns, then count their round trips."""
    from django.db import connections

    aliases = add_aliases(server, tls, server.port)
    rows = {name: Row() for name in ENGINES}
    task = progress.add_task("with TLS" if tls else "plain", total=rounds * len(ENGINES))
    for name, alias in aliases.items():  # warm: connections, server facts, compiled queries
        action = cycle(alias, keep=name == PERSISTENT)
        for run in (action, in_new_thread(action)):
            run()
    for _ in range(rounds):
        for name, alias in aliases.items():
            action = cycle(alias, keep=name == PERSISTENT)
            # Without a pool a connection for each cycle is slow enough that fewer cycles tell as much.
            n = times if name != BASE else max(times // 5, 1)
            rows[name].microseconds["reused"].append(microseconds(action, n))
            rows[name].microseconds["new"].append(microseconds(in_new_thread(action), max(n // 2, 1)))
            progress.advance(task)
    connections.close_all()
    count_round_trips(server, tls, rows)
    return rows


def count_round_trips(server: Server, tls: bool, rows: dict[str, Row], cycles: int = 20) -> None:
    """Send the same cycles through a relay; a stock connection's QUIT has no answer and is not counted."""
    from django.db import connections

    with Relay(server.host, server.port) as relay:
        for name, alias in add_aliases(server, tls, relay.port).items():
            action = cycle(alias, keep=name == PERSISTENT)
            for thread, run in (("reused", action), ("new", in_new_thread(action))):
                # Connections of ended threads say QUIT when they are collected. With TLS the relay would count that.
                gc.collect()
                run()
                before = relay.round_trips
                for _ in range(cycles):
                    run()
                rows[name].round_trips[thread] = (relay.round_trips - before) / cycles
        connections.close_all()
        close_pools()


def close_pools() -> None:
    """Leave no connection behind, of either package's."""
    from dj_db_conn_pool.core import pool_container

    from django_mysqlpool import close_pool

    close_pool()
    pool_container.dispose()
    pool_container.clear()


def show(rows: dict[str, Row], title: str) -> None:
    """Print the table of one way to connect."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (
        "reused thread: round trips",
        "time x stock new",
        "time x persistent",
        "new thread: round trips",
        "time x stock new",
    ):
        table.add_column(heading, justify="right")
    base, persistent = rows[BASE], rows[PERSISTENT]
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row.round_trips['reused']:.2f}",
            f"{row.median('reused') / base.median('reused'):.3f}",
            f"{row.median('reused') / persistent.median('reused'):.2f}",
            f"{row.round_trips['new']:.2f}",
            f"{row.median('new') / base.median('new'):.3f}",
        )
    console.print(table)


def bare(server: Server, rounds: int, times: int) -> None:
    """Checkout and checkin alone, against SQLAlchemy's own pool; and the analysis of a statement."""
    import MySQLdb
    import sqlalchemy.pool
    from django.db import connections

    from django_mysqlpool.mysqlpool.statements import analyser_for
    from tests.shop.models import Account

    alias = add_alias(server, tls=False, entry=ENGINES["django-mysqlpool"])
    wrapper = connections[alias]
    parameters = {key: value for key, value in wrapper.get_connection_params().items() if key != "cursorclass"}
    own = sqlalchemy.pool.QueuePool(lambda: MySQLdb.connect(**parameters), reset_on_return=None)
    sql, _ = Account.objects.filter(name="nobody", balance__in=[1, 2]).query.sql_with_params()

    def through_the_engine() -> None:
        wrapper.ensure_connection()
        wrapper.close()

    def through_the_pool() -> None:
        lease = pool.checkout(wrapper, params)
        pool.checkin(lease, wrapper, discard=False)

    through_the_engine()
    pool, params = wrapper.pool, wrapper.get_connection_params()
    analyse = analyser_for("10.11.0-MariaDB", "utf8mb4")
    unseen = (f"{sql} -- {number}" for number in itertools.count())
    actions = {
        "SQLAlchemy's QueuePool: connect(), close()": lambda: own.connect().close(),
        "this package's pool: checkout(), checkin()": through_the_pool,
        "through the engine: ensure_connection(), close()": through_the_engine,
        "analysing an ORM statement, seen before": lambda: analyse(sql),
        "analysing an ORM statement, never seen": lambda: analyse(next(unseen)),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            taken[name].append(microseconds(action, times * 10))
    first = median(next(iter(taken.values())))
    table = Table(title="bare", title_justify="left")
    for heading in ("", "microseconds", "x of SQLAlchemy's"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in taken.items():
        table.add_row(name, f"{median(values):.2f}", f"{median(values) / first:.2f}")
    console.print(table)
    own.dispose()
    close_pools()


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--times", type=int, default=100, help="cycles a round")
    arguments = parser.parse_args()
    with server_from_environment() as server:
        set_up(server)
        with Progress(console=console, transient=True) as progress:
            results = {"plain": measure(server, False, arguments.rounds, arguments.times, progress)}
            if not server.is_mariadb:
                results["with TLS"] = measure(server, True, arguments.rounds, arguments.times, progress)
        kind = "MariaDB" if server.is_mariadb else "MySQL"
        for how, rows in results.items():
            show(rows, f"{kind} {server.version}, {how}: checkout, one ORM query, checkin")
        bare(server, arguments.rounds, arguments.times)


if __name__ == "__main__":
    main()
