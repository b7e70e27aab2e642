"""``make benchmark-crowd``: a thousand threads over ten connections, beside ten threads over ten connections.

Told are the ratio of their requests per second and the longest time that a request took, as a multiple of the mean: they
are served in turn. Threads are started, and their first request is made, before the clock is.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from statistics import mean, median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import add_alias, set_up
from devtools.server import server_from_environment

CONNECTIONS = 10
CROWD = 1000
ENTRY = {
    "ENGINE": "django_mysqlpool.backends.mysqlpool",
    "OPTIONS": {"pool": {"pool_size": CONNECTIONS, "max_overflow": 0, "timeout": 120}},
}
console = Console(width=120)


class Crowd:
    """Threads that share ``requests`` requests, each of two milliseconds on the server."""

    def __init__(self, alias: str, threads: int, requests: int) -> None:
        self.alias = alias
        self.seconds: list[float] = []
        self._numbers = itertools.count()
        self._requests = requests
        self._ready = threading.Barrier(threads + 1)
        self._threads = [threading.Thread(target=self._serve) for _ in range(threads)]

    def run(self) -> float:
        """Requests per second."""
        for thread in self._threads:
            thread.start()
        self._ready.wait()
        begin = time.perf_counter()
        for thread in self._threads:
            thread.join()
        return self._requests / (time.perf_counter() - begin)

    def _serve(self) -> None:
        self._request()
        self._ready.wait()
        while next(self._numbers) < self._requests:
            begin = time.perf_counter()
            self._request()
            self.seconds.append(time.perf_counter() - begin)

    def _request(self) -> None:
        from django.db import connections

        connection = connections[self.alias]
        with connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(0.002)")
        connection.close()


def main() -> None:
    """Let both crowds take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000)
    arguments = parser.parse_args()
    with server_from_environment() as server, Progress(console=console, transient=True) as progress:
        set_up(server)
        alias = add_alias(server, tls=False, entry=ENTRY)
        few, many, longest = [], [], []
        for _ in progress.track(range(arguments.rounds)):
            few.append(Crowd(alias, CONNECTIONS, arguments.requests).run())
            crowd = Crowd(alias, CROWD, arguments.requests)
            many.append(crowd.run())
            longest.append(max(crowd.seconds) / mean(crowd.seconds))
    table = Table(title=f"{CROWD} threads over {CONNECTIONS} connections", title_justify="left")
    table.add_column("requests per second, x of 10 threads", justify="right")
    table.add_column("longest request, x of the mean", justify="right")
    table.add_row(f"{median(many) / median(few):.2f}", f"{max(longest):.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
