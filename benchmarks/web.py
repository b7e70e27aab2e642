"""``make benchmark-web``: a site's requests per second on each engine, under real web servers, as ratios.

One worker process; the load is wrk's. No engine has fewer connections than there are threads. The runs of all engines take
turns, several rounds, and what is told is the median of each as a multiple of the stock engine with a new connection for
each request: absolute figures of a shared machine tell nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import port_for
from mirakuru import HTTPExecutor
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import DATABASE, ENGINES, set_up
from devtools.lifeline import tied
from devtools.server import Server, server_from_environment

CLIENTS = 16
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


@contextmanager
def served(server: Server, engine: str, command: list[str], tls: bool, folder: Path) -> Iterator[str]:
    """The tests' site on an engine; its address."""
    port = port_for.select_random()
    url = f"http://127.0.0.1:{port}"
    entry: dict[str, Any] = {
        **server.settings(DATABASE, ssl_mode="REQUIRED" if tls else "DISABLED"),
        **ENGINES[OURS if engine == WRAPPED else engine],
    }
    if engine in {OURS, WRAPPED}:
        entry["OPTIONS"]["pool"] = {"pool_size": CLIENTS, "max_overflow": 0}
    environment = {"MYSQLPOOL_TEST_DATABASE": json.dumps(entry)}
    if engine not in {OURS, WRAPPED}:
        environment["MYSQLPOOL_TEST_BARE"] = "1"
    with (folder / "site.log").open("a") as log:
        process = HTTPExecutor(
            tied([sys.executable, *(part.format(port=port) for part in command)]),
            url=f"{url}/count/",
            timeout=60,
            envvars=environment,
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


def measure(server: Server, field: str, tls: bool, rounds: int, seconds: int, progress: Progress) -> None:
    """One web server's table."""
    results: dict[str, dict[str, list[float]]] = {e: {view: [] for view in VIEWS[field]} for e in FIELDS[field]}
    task = progress.add_task(field, total=rounds * len(results) * len(VIEWS[field]))
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for engine, command in FIELDS[field].items():
                with served(server, engine, command, tls, Path(folder)) as url:
                    for view, path in VIEWS[field].items():
                        requests_per_second(url + path, 1)  # warm
                        results[engine][view].append(requests_per_second(url + path, seconds))
                        progress.advance(task)
    show(results, f"{field}{', TLS to the server' if tls else ''}: requests per second, x of {STOCK}")


def show(results: dict[str, dict[str, list[float]]], title: str) -> None:
    """Print medians as ratios."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    base = results[STOCK]
    for view in base:
        table.add_column(view, justify="right")
    for engine, views in results.items():
        table.add_row(engine, *(f"{median(views[view]) / median(base[view]):.2f}" for view in base))
    console.print(table)


def main() -> None:
    """Measure both web servers; with TLS too where the server answers with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    arguments = parser.parse_args()
    with server_from_environment(options=("--max-connections=300",)) as server:
        set_up(server)
        from django.db import connections

        connections.close_all()
        with Progress(console=console, transient=True) as progress:
            for tls in (False,) if server.is_mariadb else (False, True):
                for field in FIELDS:
                    measure(server, field, tls, arguments.rounds, arguments.seconds, progress)


if __name__ == "__main__":
    main()
