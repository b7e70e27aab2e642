"""``make benchmark-web``: a site's requests per second on each engine, under real web servers, as ratios.

One worker process; the load is wrk's. No engine has fewer connections than there are threads. The sites of all engines
stand side by side and are measured by turns, for a second each, many rounds; what is told of each is the geometric mean of
its rounds as multiples of the stock engine's: absolute figures of a shared machine tell nothing.

The slices of one site differ by a tenth and more, as its threads, the load and the database server happen to meet on the
processors. And a process keeps what it was started with, the place of its objects in memory and the seed of its hashes,
which is worth two per cent and more, in each of its rounds. So two engines that are close are compared by several starts:
``--starts=20 --rounds=10`` tells one per cent, with the standard error between the starts.

Two more tables: the same requests beside 1,000 idle event streams, as a multiple of those without, and so for the stock
engine, whose streams ask nothing, as it has no connections for them: what that loses is what a server's own bookkeeping
costs. And, counted and not timed, the calls that the event loop hands to a thread for one request.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import truediv
from pathlib import Path
from statistics import geometric_mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import port_for
from mirakuru import HTTPExecutor
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import DATABASE, ENGINES, set_up
from devtools.lifeline import tied
from devtools.server import Server, server_from_environment
from tests.hops import CountingLoop, request

CLIENTS = 16
STREAMS = 1000
console = Console(width=120)

_GUNICORN = ["-m", "gunicorn", "--no-control-socket", "--bind=127.0.0.1:{port}", "--threads=16", "--worker-class=gthread"]
_UVICORN = ["-m", "uvicorn", "--port={port}", "--log-level=warning", "--no-access-log"]
STOCK, PERSISTENT, PEER, OURS = ENGINES
WRAPPED = f"{OURS}, wrapped"
# Who is served by what; the base of the ratios first.
FIELDS = {
    "gunicorn threads": {
        STOCK: [*_GUNICORN, "tests.wsgi"],
        PERSISTENT: [*_GUNICORN, "tests.wsgi"],
        PEER: [*_GUNICORN, "tests.wsgi"],
        OURS: [*_GUNICORN, "tests.wsgi"],
    },
    "uvicorn": {
        STOCK: [*_UVICORN, "tests.asgi:application"],
        PEER: [*_UVICORN, "tests.asgi:application"],
        OURS: [*_UVICORN, "tests.asgi:application"],
        WRAPPED: [*_UVICORN, "tests.asgi:wrapped"],
    },
}
VIEWS = {
    "gunicorn threads": {"sync view, one query": "/count/", "no query": "/nothing/"},
    "uvicorn": {"sync view, one query": "/count/", "async view, one query": "/count-async/", "no query": "/nothing/"},
}
# The idle streams of each.
STREAMED = {STOCK: "/events-alone/", WRAPPED: "/events/"}


#: The requests per second of each site and view, for each start of the site one figure of each round.
Figures = dict[str, dict[str, list[list[float]]]]


class Rounds(NamedTuple):
    """How many after each start of the sites, and for how many seconds each site is measured in one."""

    starts: int
    number: int
    seconds: int
    progress: Progress


def site_environment(server: Server, engine: str, *, tls: bool = False) -> dict[str, str]:
    """The environment that has the tests' site use an engine."""
    entry: dict[str, Any] = {
        **server.settings(DATABASE, ssl_mode="REQUIRED" if tls else "DISABLED"),
        **ENGINES[OURS if engine == WRAPPED else engine],
    }
    if engine in {OURS, WRAPPED}:
        entry["OPTIONS"]["pool"] = {"pool_size": CLIENTS, "max_overflow": 0}
    environment = {"MYSQLPOOL_TEST_DATABASE": json.dumps(entry)}
    if engine not in {OURS, WRAPPED}:
        environment["MYSQLPOOL_TEST_BARE"] = "1"
    return environment


@contextmanager
def served(server: Server, engine: str, command: list[str], tls: bool, folder: Path) -> Iterator[str]:
    """The tests' site on an engine; its address."""
    port = port_for.select_random()
    url = f"http://127.0.0.1:{port}"
    with (folder / "site.log").open("a") as log:
        process = HTTPExecutor(
            tied([sys.executable, *(part.format(port=port) for part in command)]),
            url=f"{url}/count/",
            timeout=60,
            envvars=site_environment(server, engine, tls=tls),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        process.start()
        try:
            yield url
        finally:
            process.kill()


def requests_per_second(url: str, seconds: int) -> float:
    """What wrk counts; an answer that is no success ends the benchmark, for it would be a fast one."""
    command = ["wrk", f"--connections={CLIENTS}", "--threads=1", f"--duration={seconds}s", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told:
        raise SystemExit(f"{url}:\n{told}")
    (number,) = re.findall(r"Requests/sec:\s+([\d.]+)", told)
    return float(number)


def measure(urls: dict[str, str], views: dict[str, str], title: str, rounds: Rounds, figures: Figures) -> None:
    """Add the figures of sites that stand side by side, by turns."""
    task = rounds.progress.add_task(title, total=rounds.number * len(urls) * len(views))
    for view, path in views.items():
        for site, url in urls.items():
            requests_per_second(url + path, rounds.seconds)  # warm
            figures.setdefault(site, {}).setdefault(view, []).append([])
        for number in range(rounds.number):
            for site in list(urls)[:: -1 if number % 2 else 1]:
                figures[site][view][-1].append(requests_per_second(urls[site] + path, rounds.seconds))
                rounds.progress.advance(task)
    rounds.progress.remove_task(task)


def measure_engines(server: Server, field: str, tls: bool, rounds: Rounds, engines: list[str], views: list[str]) -> None:
    """One web server's tables."""
    figures: Figures = {}
    measured = {view: path for view, path in VIEWS[field].items() if view in views}
    for start in range(rounds.starts):
        with TemporaryDirectory() as folder, ExitStack() as stack:
            urls = {
                engine: stack.enter_context(served(server, engine, command, tls, Path(folder)))
                for engine, command in FIELDS[field].items()
                if engine in engines
            }
            measure(urls, measured, f"{field}, start {start + 1}", rounds, figures)
    for base in (STOCK, PERSISTENT):
        if base in figures:
            show(figures, base, f"{field}{', TLS to the server' if tls else ''}: requests per second, x of {base}")


def show(figures: Figures, base: str, title: str) -> None:
    """Print ratios."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for view in figures[base]:
        table.add_column(view, justify="right")
    for site, views in figures.items():
        table.add_row(site, *(ratio(starts, figures[base][view]) for view, starts in views.items()))
    console.print(table)


def ratio(starts: list[list[float]], base: list[list[float]]) -> str:
    """The geometric mean of all rounds' ratios, and the standard error between the starts, if there are several."""
    of_each = [geometric_mean(map(truediv, its, others)) for its, others in zip(starts, base, strict=True)]
    error = f" ±{stdev(of_each) / math.sqrt(len(of_each)):.3f}" if len(of_each) > 1 else ""
    return f"{geometric_mean(of_each):.3f}{error}"


@contextmanager
def idle_streams(url: str, path: str) -> Iterator[None]:
    """Clients of server-sent events, each of which has had its first and waits for a second that never comes."""
    port = int(url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(STREAMS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = b""
            while b"data:" not in received:
                received += client.recv(1000)
        yield


def measure_beside_streams(server: Server, rounds: Rounds) -> None:
    """The tables of what idle streams cost the other requests."""
    urls: dict[str, str] = {}
    figures: Figures = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        for engine, path in STREAMED.items():
            for site in (f"{engine}, alone", f"{engine}, beside streams"):
                command = FIELDS["uvicorn"][engine]
                urls[site] = stack.enter_context(served(server, engine, command, False, Path(folder)))
            stack.enter_context(idle_streams(urls[site], path))
        measure(urls, VIEWS["uvicorn"], "idle streams", rounds, figures)
    for engine, path in STREAMED.items():
        alone, beside = f"{engine}, alone", f"{engine}, beside streams"
        title = f"uvicorn: requests per second beside {STREAMS:,} idle streams of {path}, x of those without"
        show({site: figures[site] for site in (alone, beside)}, alone, title)


def count_hops(requests: int = 20) -> None:
    """The table of the calls for which a request changes threads."""
    from django.core.asgi import get_asgi_application
    from django.test import override_settings

    from django_mysqlpool.middleware import ConnectionReleaseASGI

    def make_stock() -> Any:
        with override_settings(MIDDLEWARE=[]):
            return get_asgi_application()

    # The wrapper is made last: it replaces receivers of the process.
    makers = ((STOCK, make_stock), (WRAPPED, lambda: ConnectionReleaseASGI(get_asgi_application())))
    table = Table(title="ASGI: what the event loop hands to a thread for one request", title_justify="left")
    for column in ("", "view", "calls", "threads for 20 requests"):
        table.add_column(column)
    for name, make in makers:
        application = make()
        for view, path in VIEWS["uvicorn"].items():
            loop = CountingLoop()
            for _ in range(requests):
                request(loop, application, path)
            calls = loop.calls[-len(loop.calls) // requests :]
            table.add_row(name, view, f"{len(calls)}: {', '.join(calls)}", str(len(loop.threads)))
            loop.close()
    console.print(table)


def main() -> None:
    """Count, and measure both web servers; with TLS too where the server answers with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    every_view = sorted({view for views in VIEWS.values() for view in views})
    parser.add_argument("--starts", type=int, default=1, help="how often the sites are started; those with streams once")
    parser.add_argument("--rounds", type=int, default=11, help="after each start")
    parser.add_argument("--seconds", type=int, default=1, help="for each site and view in each round")
    parser.add_argument("--only", choices=[*FIELDS, "streams"], help="one of the web servers, or the idle streams")
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES, WRAPPED], default=[*ENGINES, WRAPPED])
    parser.add_argument("--views", nargs="+", choices=every_view, default=every_view)
    arguments = parser.parse_args()
    if not {STOCK, PERSISTENT} & {*arguments.engines}:
        parser.error(f"--engines needs {STOCK!r} or {PERSISTENT!r}, to compare with")
    with server_from_environment(options=("--max-connections=300",)) as server:
        set_up(server)
        from django.db import connections

        connections.close_all()  # one that is out on behalf of no request would have a receiver called
        count_hops()
        connections.close_all()
        with Progress(console=console, transient=True) as progress:
            rounds = Rounds(arguments.starts, arguments.rounds, arguments.seconds, progress)
            for tls in (False,) if server.is_mariadb else (False, True):
                for field in FIELDS:
                    if arguments.only in {None, field}:
                        measure_engines(server, field, tls, rounds, arguments.engines, arguments.views)
            if arguments.only in {None, "streams"}:
                measure_beside_streams(server, rounds)


if __name__ == "__main__":
    main()
