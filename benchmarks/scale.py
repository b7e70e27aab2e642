"""``make benchmark-scale``: what one process can take, and what each thing in it costs.

Memory is what the process holds more afterwards, by its resident set, divided by the number of things. Counts (connections
on the server, threads, errors) are exact; times are told as ratios, taken by turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.cycle import add_alias, set_up
from devtools.server import Server, server_from_environment

OURS = "django_mysqlpool.backends.mysqlpool"
STOCK = "django.db.backends.mysql"
IDLE, WRAPPERS, HELD_THREADS, ALIASES = 100, 2_000, 200, 200
THREADS, CONNECTIONS, REQUESTS = 2_000, 20, 10_000
#: The C library's ``malloc_trim()``; not every one has it.
TRIM: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
console = Console(width=120)


@dataclass
class Findings:
    """The rows of the table."""

    table: Table = field(default_factory=lambda: Table("What", "Measured", title="One process", title_justify="left"))

    def add(self, what: str, told: str) -> None:
        """Add a row, and say how far the run is."""
        self.table.add_row(what, told)
        console.print(f"[dim]{what}: {told}[/dim]")


class Grown:
    """The memory that the process holds more than at the beginning of a block."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        gc.collect()
        TRIM(0)  # what was freed before would be used again, and not be seen
        self._before = self._process.memory_info().rss

    def per(self, number: int) -> str:
        """Kibibytes for each of so many things."""
        gc.collect()
        return f"{(self._process.memory_info().rss - self._before) / number / 1024:.1f} KiB each"


def pooled(server: Server, **pool: Any) -> str:
    """A pooled alias."""
    return add_alias(server, False, {"ENGINE": OURS, "OPTIONS": {"ssl_mode": "DISABLED", "pool": pool}})


@contextmanager
def held_threads(number: int, work: Callable[[], object]) -> Iterator[None]:
    """So many threads at once, each of which has done its work and stays."""
    done, may_end = threading.Semaphore(0), threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            done.release()
            may_end.wait()

    threads = [threading.Thread(target=run) for _ in range(number)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            done.acquire()
        yield
    finally:
        may_end.set()
        for thread in threads:
            thread.join()


def query(alias: str) -> None:
    """One ORM query, and the connection's return."""
    from django.db import connections

    from tests.shop.models import Account

    Account.objects.using(alias).filter(name="nobody").first()
    connections[alias].close()


def others_on_server(connection: Any) -> int:
    """How many connections the server counts beside the one that asks."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user <> 'system user'"
        )
        ((number,),) = cursor.fetchall()
    return int(number)


def memory(server: Server, found: Findings) -> None:
    """What each thing costs that a process may have many of."""
    from django.db import connections

    from django_mysqlpool import pool_status

    alias = pooled(server, pool_size=IDLE, max_overflow=0)
    query(alias)
    barrier, grown = threading.Barrier(IDLE), Grown()

    def hold() -> None:
        with connections[alias].cursor():
            barrier.wait()
        connections[alias].close()

    threads = [threading.Thread(target=hold) for _ in range(IDLE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (status,) = [status for status in pool_status().values() if alias in status["aliases"]]
    found.add(f"{status['idle']} idle connections", grown.per(IDLE))
    stock = add_alias(server, False, {"ENGINE": STOCK})
    kept: list[list[object]] = []  # until the end: what is freed would be used again, and not be seen
    for name, each in (("a wrapper", alias), ("a wrapper of Django's engine", stock)):
        grown = Grown()
        kept.append([connections.create_connection(each) for _ in range(WRAPPERS)])
        found.add(f"{name}, of {WRAPPERS:,}", grown.per(WRAPPERS))
    for name, work in (("a thread", lambda: None), ("a thread that has used the pool", lambda: query(alias))):
        grown = Grown()
        with held_threads(HELD_THREADS, work):
            found.add(f"{name}, of {HELD_THREADS}", grown.per(HELD_THREADS))


def many_aliases(server: Server, found: Findings) -> None:
    """As a site with a database for each tenant has them."""
    from django_mysqlpool import close_pool, pool_status
    from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

    close_pool()
    grown = Grown()
    # (The same database under another name for a session variable: aliases with equal parameters share a pool.)
    aliases = [
        add_alias(server, False, {"ENGINE": OURS, "OPTIONS": {"init_command": f"SET @tenant = {number}"}})
        for number in range(ALIASES)
    ]
    for alias in aliases:
        query(alias)
    pools = [status for status in pool_status().values() if set(aliases) & set(status["aliases"])]
    open_now = sum(status["open"] for status in pools)
    found.add(f"{ALIASES} aliases, {len(pools)} pools, {open_now} connections", grown.per(ALIASES))
    found.add("maintenance threads for them", str(sum(t is maintenance.thread for t in threading.enumerate())))
    close_pool()


def crowd(server: Server, found: Findings) -> None:
    """Far more threads than connections, all at once."""
    from django.db import connections

    from django_mysqlpool import close_pool

    connections.close_all()
    close_pool()
    alias = pooled(server, pool_size=CONNECTIONS, max_overflow=0, timeout=300)
    start, errors, most = threading.Barrier(THREADS + 1), [], 0

    def work() -> None:
        start.wait()
        try:
            query(alias)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    observer = server.connect()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        most = max(most, others_on_server(observer))
    observer.close()
    for thread in threads:
        thread.join()
    told = f"{len(errors)} errors, {most} connections on the server at most"
    found.add(f"{THREADS:,} threads over {CONNECTIONS} connections", told)


def waiting_requests(_: Server, found: Findings) -> None:
    """Requests that arrive all at once under ASGI."""
    from django.core.asgi import get_asgi_application

    from django_mysqlpool import pool_status
    from django_mysqlpool.middleware import ConnectionReleaseASGI

    application = ConnectionReleaseASGI(get_asgi_application())
    statuses: list[int] = []
    threads = 0

    async def receive_once() -> Callable[[], Any]:
        messages = [{"type": "http.request", "body": b""}]

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        return receive

    async def send(message: Any) -> None:
        nonlocal threads
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            threads = max(threads, threading.active_count())

    async def serve() -> None:
        scope = {"type": "http", "method": "GET", "path": "/count/", "query_string": b"", "headers": []}
        requests = [application(dict(scope), await receive_once(), send) for _ in range(REQUESTS)]
        await asyncio.gather(*requests)

    before = threading.active_count()
    grown = Grown()
    asyncio.run(serve())
    served = sum(status == 200 for status in statuses)
    out = sum(status["out"] for status in pool_status().values())
    told = f"{served:,} served, {threads - before} threads more, {out} connections out afterwards, {grown.per(REQUESTS)}"
    found.add(f"{REQUESTS:,} requests at once under ASGI", told)
    application.threads.close()


def cold_start(server: Server, found: Findings) -> None:
    """From the interpreter's start to the first answer, in processes of their own, by turns."""
    program = (
        "import django; django.setup(); from django.db import connection; "
        "connection.cursor().execute('SELECT 1'); connection.close()"
    )
    never = "import django; django.setup(); from django.db import connection; connection.vendor"
    for what, text in (("up to the first answer", program), ("of a command that never connects", never)):
        seconds: dict[str, list[float]] = {STOCK: [], OURS: []}
        for _ in range(7):
            for engine, taken in seconds.items():
                entry = {**server.settings("mysqlpool_benchmark"), "ENGINE": engine, "OPTIONS": {}}
                settings = f"from django.conf import settings; settings.configure(DATABASES={{'default': {entry!r}}}); "
                begin = time.perf_counter()
                subprocess.run([sys.executable, "-W", "ignore", "-c", settings + text], check=True, env=dict(os.environ))
                taken.append(time.perf_counter() - begin)
        found.add(f"cold start {what}", f"{median(seconds[OURS]) / median(seconds[STOCK]):.2f} x Django's engine")


def cost_of_leak_after(server: Server, found: Findings) -> None:
    """What ``leak_after`` adds to a request, whose checkouts it takes a stack of."""
    from django_mysqlpool import auto_close_db

    plain, watched = pooled(server, pool_size=1), pooled(server, pool_size=1, leak_after=60)
    seconds: dict[str, list[float]] = {plain: [], watched: []}
    for _ in range(15):
        for alias, taken in seconds.items():
            work = auto_close_db(query)
            begin = time.perf_counter()
            for _ in range(200):
                work(alias)
            taken.append(time.perf_counter() - begin)
    ratio = median(seconds[watched]) / median(seconds[plain])
    found.add("leak_after, a unit of work with one query", f"{ratio:.2f} x without")


def main() -> None:
    """Measure one after the other, and print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = Findings()
    with server_from_environment(options=("--max-connections=1000",)) as server:
        set_up(server)
        for measure in (memory, many_aliases, crowd, waiting_requests, cold_start, cost_of_leak_after):
            measure(server, found)
        from django.db import connections

        from django_mysqlpool import close_pool

        connections.close_all()
        close_pool()
    console.print(found.table)


if __name__ == "__main__":
    main()
