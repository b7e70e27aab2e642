"""``make benchmark-release``: a connection held for a request, and held only while SQL runs, side by side in one run.

A *view* asks three one-row queries around 50 ms of other work; 64 threads serve it. *Queries* is a view without other work:
ten one-row queries, in one thread. All take turns, in slices of less than a second, and every second round backwards: a
machine is never the same for long. Told is the median, over the rounds, of the ratio to the last one's slice. That no more
connections are used than the pool has is the server's to say: it lets each pool's user have so many, and not one more.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable
from statistics import median

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


def serve(alias: str, requests: int) -> float:
    """Views per second by ``THREADS`` threads, which are started, and have asked once, before the clock is."""
    from django_mysqlpool import auto_close_db

    request, numbers = auto_close_db(view), itertools.count()
    ready = threading.Barrier(THREADS + 1)
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

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return requests / (time.perf_counter() - begin)


def serve_queries(alias: str, requests: int) -> float:
    """The same of nothing but queries, by the calling thread."""
    from django_mysqlpool import auto_close_db

    request = auto_close_db(queries)
    request(alias)
    begin = time.perf_counter()
    for _ in range(requests):
        request(alias)
    return requests / (time.perf_counter() - begin)


def main() -> None:
    """Let all take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="of queries: four times as many")
    parser.add_argument("--requests", type=int, default=640, help="in a slice of views; of queries: a sixteenth")
    arguments = parser.parse_args()
    with server_from_environment() as server, Progress(console=console, transient=True) as progress:
        set_up(server)
        from tests.shop.models import Account

        Account.objects.create(name="one", balance=1)
        pools = [(SMALL, "request"), (SMALL, "transaction"), (THREADS, "request")]
        names = [f"{size} connections, held per {release}" for size, release in pools]
        aliases = [pooled(server, size, release) for size, release in pools]
        few = [arguments.requests // 10, arguments.requests, arguments.requests]
        rounds = progress.track(range(arguments.rounds), description="views")
        of_views = [by_turns(number, serve, aliases, few) for number in rounds]
        rounds = progress.track(range(4 * arguments.rounds), description="queries")
        of_queries = [by_turns(number, serve_queries, aliases, [arguments.requests // 16] * 3) for number in rounds]
    show(names, ratios_to_last(of_views), ratios_to_last(of_queries))


def by_turns(number: int, serve: Callable[[str, int], float], aliases: list[str], requests: list[int]) -> list[float]:
    """Requests per second of each in this round, which goes backwards where its number is odd."""
    turns = list(enumerate(zip(aliases, requests, strict=True)))[:: -1 if number % 2 else 1]
    rates = {index: serve(*turn) for index, turn in turns}
    return [rates[index] for index in range(len(aliases))]


def ratios_to_last(rounds: list[list[float]]) -> list[float]:
    """Medians over the rounds."""
    return [
        median(own / rates[-1] for own, rates in zip(column, rounds, strict=True)) for column in zip(*rounds, strict=True)
    ]


def show(names: list[str], views: list[float], queries: list[float]) -> None:
    """Print the table."""
    table = Table(title=f"requests per second, x of {THREADS} connections held per request", title_justify="left")
    table.add_column("")
    for heading in (f"view, {THREADS} threads", "queries only, 1 thread"):
        table.add_column(heading, justify="right")
    for name, *ratios in zip(names, views, queries, strict=True):
        table.add_row(name, *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)


if __name__ == "__main__":
    main()
