"""``make demo``: one Django site, a server that allows 30 connections, 100 clients at once.

The site (example/) is served four times under the same load: on Django's own MySQL engine and on
the pooled one, by gunicorn's threads and by uvicorn. Then a table tells them apart, and the pooled
site stays up to be looked at.

The load is wrk's: written in C, it leaves the two cores of a small machine to the site, and its
Lua script (visitors.lua) knows the status and the time of each answer, so that a request which
fails at once doesn't count as a fast one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import port_for
from mirakuru import HTTPExecutor, SimpleExecutor
from mirakuru.exceptions import ExecutorError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from devtools.lifeline import tied
from devtools.server import PrivateServer, Server, ServerError, server_from_environment, tail

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "example"
CACHE = ROOT / ".demo"
VISITORS = ROOT / "devtools" / "visitors.lua"

CLIENTS = 100
SERVER_ALLOWS = 30
WORKERS = 2
WARM_UP_SECONDS = 2
LOAD_SECONDS = 12
SITE_START_SECONDS = 30
LOOK_SECONDS = 0.2

STOCK = "django.db.backends.mysql"
POOLED = "django_mysqlpool.backends.mysqlpool"
ENGINES = {STOCK: "Django's own", POOLED: "mysqlpool"}
POOL = runpy.run_path(str(EXAMPLE / "worldsite" / "settings.py"))["POOL"]
CAP = WORKERS * (POOL["pool_size"] + POOL["max_overflow"])
STATUS_PAGE = "mysqlpool/"

# Each as its documentation says, with as many threads as there are clients where it wants to know.
WEB_SERVERS = {
    "gunicorn": (
        *("gunicorn", "worldsite.wsgi", f"--workers={WORKERS}", f"--threads={CLIENTS // WORKERS}"),
        *("--no-control-socket", "--log-level=warning", "--bind=127.0.0.1:{port}"),
    ),
    "uvicorn": (
        *("uvicorn", "worldsite.asgi:application", f"--workers={WORKERS}", "--no-access-log"),
        *("--log-level=warning", "--host=127.0.0.1", "--port={port}"),
    ),
}

console = Console()


@dataclass(frozen=True)
class Outcome:
    """What one run showed."""

    web_server: str
    engine: str
    failed: int
    seconds: float
    milliseconds: list[float]
    peak: int

    @property
    def answered(self) -> int:
        """The requests that got what they asked for; the times are theirs."""
        return len(self.milliseconds)

    def percentile(self, n: int) -> float:
        """The time in which n of 100 good answers came."""
        return quantiles(self.milliseconds, n=100)[n - 1] if self.answered > 1 else float("nan")


class Site:
    """The example site on a database of a server."""

    def __init__(self, server: Server, database: str, logs: Path) -> None:
        self.server = server
        self.database = database
        self.logs = logs
        self.password = secrets.token_urlsafe(12)
        self.port = port_for.select_random()
        self.url = f"http://127.0.0.1:{self.port}/"

    def fill(self) -> None:
        """Make the database and load the cities, for the person who watches."""
        query(self.server, f"CREATE DATABASE {self.database} CHARACTER SET utf8mb4")
        for command in (["migrate", "--verbosity=0"], ["load_cities"]):
            manage = tied([sys.executable, str(EXAMPLE / "manage.py"), *command])
            environment = self._environment(STOCK, self.server.user, self.server.password)
            if subprocess.run(manage, check=False, env={**os.environ, **environment}).returncode:
                raise ServerError(f"manage.py {command[0]} failed, as said above")

    def admit(self) -> None:
        """Make the site a login, without an administrator's right to one connection more."""
        user = f"'{self.database}'@'%'"
        query(self.server, f"CREATE USER {user} IDENTIFIED BY '{self.password}'")
        query(self.server, f"GRANT ALL PRIVILEGES ON {self.database}.* TO {user}")

    def drop(self) -> None:
        """Undo ``fill`` and ``admit``."""
        query(self.server, f"DROP USER IF EXISTS '{self.database}'@'%'")
        query(self.server, f"DROP DATABASE IF EXISTS {self.database}")

    @property
    def allowed(self) -> int:
        """The most connections that the server lets the site have."""
        return int(query(self.server, "SELECT @@max_connections")[0][0])

    @contextmanager
    def served(self, web_server: str, engine: str) -> Iterator[HTTPExecutor]:
        """The site, up and answering."""
        log = self.logs / f"{web_server} {engine}.log"
        with log.open("w") as output:
            process = HTTPExecutor(
                tied([sys.executable, "-m", *self._command(web_server)], remove=self.logs),
                self.url,
                method="GET",
                timeout=SITE_START_SECONDS,
                cwd=str(EXAMPLE),
                envvars=self._environment(engine, self.database, self.password),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                process.start()
                yield process
            except ExecutorError as error:
                what = f"{web_server} on {engine} failed ({type(error).__name__})"
                raise ServerError(f"{what}:\n{tail(log)}") from error
            finally:
                process.stop()

    def _command(self, web_server: str) -> list[str]:
        return [part.format(port=self.port) for part in WEB_SERVERS[web_server]]

    def _environment(self, engine: str, user: str, password: str) -> dict[str, str]:
        return {
            "DEMO": "1",
            "ENGINE": engine,
            "DATABASE_NAME": self.database,
            "DATABASE_HOST": self.server.host,
            "DATABASE_PORT": str(self.server.port),
            "DATABASE_USER": user,
            "DATABASE_PASSWORD": password,
        }


def query(server: Server, statement: str) -> tuple[Any, ...]:
    """Ask the server by a connection of our own, which is gone when the site needs its place."""
    connection = server.connect()
    try:
        cursor = connection.cursor()
        cursor.execute(statement)
        return tuple(cursor.fetchall())
    finally:
        connection.close()


def status(server: Server, name: str) -> int:
    """One of the server's own counters."""
    return int(query(server, f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])


def forget_peak(server: Server) -> None:
    """Let the server count its connections anew, once those of the last run are gone."""
    deadline = time.monotonic() + 5
    while status(server, "Threads_connected") > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    query(server, "FLUSH STATUS")


def visit(url: str, seconds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Let the clients at the site; what they tell is described in visitors.lua."""
    how = [f"-t{CLIENTS}", f"-c{CLIENTS}", f"-d{seconds}", "-T60", "-s", str(VISITORS)]
    with TemporaryFile("w+") as output:
        load = SimpleExecutor(tied(["wrk", *how, url]), stdin=subprocess.DEVNULL, stdout=output)
        with load:
            while load.running():
                tick()
                time.sleep(LOOK_SECONDS)
        output.seek(0)
        *said, told = output.read().splitlines()
        if not told.startswith("{"):
            raise ServerError("\n".join(["wrk failed:", *said, told]))
        return dict(json.loads(told))


def measure(site: Site, web_server: str, engine: str, tick: Callable[[], None]) -> Outcome:
    """One run: what the clients and the server saw of the site on this engine."""
    forget_peak(site.server)
    with site.served(web_server, engine):
        visit(site.url, WARM_UP_SECONDS, tick)
        told = visit(site.url, LOAD_SECONDS, tick)
    # MariaDB counts the connection, too, that it refuses for being one too many.
    peak = min(status(site.server, "Max_used_connections"), site.allowed)
    milliseconds = [time / 1000 for time in told["microseconds"]]
    return Outcome(web_server, engine, told["failed"], told["seconds"], milliseconds, peak)


def measure_all(site: Site) -> list[Outcome]:
    """The four runs, each with a bar that shows how far it is."""
    outcomes = []
    with Progress(console=console) as progress:
        for web_server, engine in product(WEB_SERVERS, (STOCK, POOLED)):
            task = progress.add_task(f"{web_server}: {ENGINES[engine]}", total=WARM_UP_SECONDS + LOAD_SECONDS)
            tick = partial(progress.advance, task, LOOK_SECONDS)
            outcomes.append(measure(site, web_server, engine, tick))
            progress.update(task, completed=WARM_UP_SECONDS + LOAD_SECONDS)
    return outcomes


def show(outcomes: list[Outcome], allowed: int) -> None:
    """The table, and what it says in a sentence."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=f"{CLIENTS} clients on a site whose database server allows {allowed} connections",
        caption="Requests per second and times are those of the requests that didn't fail.",
    )
    table.add_column("Server")
    table.add_column("Engine")
    for column in ("Requests/s", "Median", "99th perc.", "Failed", "Connections"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        table.add_row(*cells(outcome, allowed), end_section=outcome.engine == POOLED)
    console.print(table)
    console.print(conclusion(outcomes))


def cells(outcome: Outcome, allowed: int) -> list[str]:
    """An outcome's row of the table."""
    colour = "red" if outcome.failed else "green"
    return [
        outcome.web_server,
        ENGINES[outcome.engine],
        f"{outcome.answered / outcome.seconds:,.0f}",
        f"{outcome.percentile(50):,.0f} ms",
        f"{outcome.percentile(99):,.0f} ms",
        f"[{colour}]{outcome.failed:,}[/]",
        f"{outcome.peak} of {CAP if outcome.engine == POOLED else allowed}",
    ]


def conclusion(outcomes: list[Outcome]) -> str:
    """What the table says, in words."""
    stock, pooled = (totals(outcomes, engine) for engine in (STOCK, POOLED))
    return (
        f"Django's own engine opens a connection for each request and failed {stock}; "
        f"mysqlpool, which shares {CAP} connections between {WORKERS} processes, failed {pooled}."
    )


def totals(outcomes: list[Outcome], engine: str) -> str:
    """How many requests failed on an engine, of how many."""
    runs = [outcome for outcome in outcomes if outcome.engine == engine]
    failed = sum(outcome.failed for outcome in runs)
    return f"{failed:,} of {failed + sum(outcome.answered for outcome in runs):,} requests"


def kept_its_word(outcome: Outcome) -> bool:
    """Whether the pooled engine answered all within its cap; the stock one promised nothing."""
    if outcome.engine == STOCK:
        return True
    return outcome.answered > 0 and outcome.failed == 0 and outcome.peak <= CAP


def cached_world(server: PrivateServer, logs: Path) -> Path:
    """A data folder with the cities in it, made once for this server and this example."""
    brand = "mariadb" if server.is_mariadb else "mysql"
    folder = CACHE / f"{brand}-{server.version}-{example_digest()}"
    if not folder.exists():
        console.print(f"Loading the cities into {brand} {server.version}, once for all runs")
        unfinished = CACHE / "unfinished"
        for old in (unfinished, *CACHE.glob(f"{brand}-*")):
            shutil.rmtree(old, ignore_errors=True)
        with PrivateServer(folder=unfinished) as maker:
            Site(maker, "world", logs).fill()
        unfinished.rename(folder)
    return folder


def example_digest() -> str:
    """Changes with the example's models, migrations and loader."""
    digest = hashlib.sha256()
    for path in sorted((EXAMPLE / "cities").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def prepared_site() -> Iterator[Site]:
    """The site with its cities, on a server that is gone afterwards, as the database is on any."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory(prefix="mysqlpool-demo-")))
        server = server_from_environment(options=[f"--max-connections={SERVER_ALLOWS}"])
        stack.callback(server.close)
        if isinstance(server, PrivateServer):
            shutil.copytree(cached_world(server, logs) / "data", server.folder / "data")
            server.start()
            site = Site(server, "world", logs)
        else:
            server.start()
            site = Site(server, f"mysqlpool_demo_{os.getpid()}", logs)
            stack.callback(site.drop)
            site.fill()
        site.admit()
        yield site


def keep_up(site: Site) -> None:
    """Serve the pooled site until somebody has seen enough."""
    with site.served("gunicorn", POOLED) as process:
        console.print(f"The pooled site is up at {site.url} (Ctrl-C stops it)")
        console.print(f"The status of its pools is at {site.url}{STATUS_PAGE}")
        if process.process:
            process.process.wait()
    raise ServerError("the site ended by itself")


def stop_once(*_: object) -> None:
    """End as Ctrl-C does, and let no second signal disturb the clearing up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 where the pooled engine answered every request within its cap."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make demo")
    parser.add_argument("--once", action="store_true", help="end after the table")
    once = parser.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once)
    if not shutil.which("wrk"):
        console.print("wrk, which makes the load, was not found: apt-get install wrk")
        return 1
    outcomes: list[Outcome] = []
    try:
        with prepared_site() as site:
            outcomes = measure_all(site)
            show(outcomes, site.allowed)
            if not once:
                keep_up(site)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        if not outcomes:
            return 130
    except (ServerError, ExecutorError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    return 0 if all(map(kept_its_word, outcomes)) else 1


if __name__ == "__main__":
    sys.exit(main())
