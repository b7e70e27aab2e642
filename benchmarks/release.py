"""``make benchmark-release``: a connection held for a request, and held only while SQL runs, side by side in one run.

A *view* asks three one-row queries around 50 ms of other work; 64 threads serve it. *Queries* is a view without other work:
ten one-row queries, in one thread. Told are ratios, of medians over rounds that take turns. That no more connections are
used than the pool has is the server's to say: it lets each pool's user have so many, and not one more.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import DATABASE, add_alias, set_up
from devtools.server import Server, server_from_environment

THREADS = 64
SMALL = 4
OTHER_WORK = 0.05
console = Console(width=120)


def pooled(server: Server, size: int, release: str) -> str:
    """An alias whose user may have ``size`` connections, and not one more."""
    name = f"bench_{size}_{release}"
    outside = server.connect()
    outside.query(f"CREATE USER '{name}'@'%' IDENTIFIED BY 'benchmark' WITH MAX_USER_CONNECTIONS {size}")
    outside.query(f"GRANT ALL ON {DATABASE}.* TO '{name}'@'%'")
    outside.close()
    pool = {"pool_size": size, "max_overflow": 0, "timeout": 120, "release": release}
    login = {"USER": name, "PASSWORD": "benchmark"}
    entry = {"ENGINE": "django_mysqlpool.backends.mysqlpool", "OPTIONS": {"pool": pool}, **login}
    return add_alias(server, tls=False, entry=entry)


def query(alias: str) -> None:
    """One row, by the ORM."""
    from tests.shop.models import Account

    list(Account.objects.using(alias).filter(name="one").values_list("balance"))


def view(alias: str) -> None:
    """Two queries, another service, a third query."""
    query(alias)
    query(alias)
    time.sleep(OTHER_WORK)
    query(alias)


def queries(alias: str) -> None:
    """Nothing but queries."""
    for _ in range(10):
        query(alias)


def serve(alias: str, requests: int, threads: int, function: Callable[[str], None]) -> float:
    """Requests per second; threads are started, and have asked once, before the clock is."""
    from django_mysqlpool import auto_close_db

    request, numbers = auto_close_db(function), itertools.count()
    ready = threading.Barrier(threads + 1)
    failures: list[Exception] = []

    def work() -> None:
        try:
            auto_close_db(query)(alias)
            ready.wait()
            while next(numbers) < requests:
                request(alias)
        except Exception as error:
            failures.append(error)
            ready.abort()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return requests / (time.perf_counter() - begin)


def main() -> None:
    """Let all take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1_000)
    arguments = parser.parse_args()
    with server_from_environment() as server, Progress(console=console, transient=True) as progress:
        set_up(server)
        from tests.shop.models import Account

        Account.objects.create(name="one", balance=1)
        pools = [(SMALL, "request"), (SMALL, "transaction"), (THREADS, "request")]
        aliases = {f"{size} connections, held per {release}": pooled(server, size, release) for size, release in pools}
        taken: dict[str, dict[str, list[float]]] = {name: {"view": [], "queries": []} for name in aliases}
        for _ in progress.track(range(arguments.rounds)):
            for name, alias in aliases.items():
                few = arguments.requests // (10 if name == next(iter(aliases)) else 1)
                taken[name]["view"].append(serve(alias, few, THREADS, view))
            for name, alias in aliases.items():
                taken[name]["queries"].append(serve(alias, arguments.requests, 1, queries))
    show(taken)


def show(taken: dict[str, dict[str, list[float]]]) -> None:
    """Print the table."""
    last: dict[str, Any] = {kind: median(values) for kind, values in list(taken.values())[-1].items()}
    table = Table(title=f"requests per second, x of {THREADS} connections held per request", title_justify="left")
    table.add_column("")
    for heading in (f"view, {THREADS} threads", "queries only, 1 thread"):
        table.add_column(heading, justify="right")
    for name, kinds in taken.items():
        table.add_row(name, *(f"{median(values) / last[kind]:.2f}" for kind, values in kinds.items()))
    console.print(table)


if __name__ == "__main__":
    main()
