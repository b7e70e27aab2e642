"""``make soak MINUTES=10``: strikes, looks whether every worker recovers, and judges at the end."""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import MySQLdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from devtools.server import ExistingServer, Server, ServerError, server_from_environment
from devtools.soak import ledger
from devtools.soak.run import Soak, Worker
from tests.relay import Relay

ENGINE = "django_mysqlpool.backends.mysqlpool"
#: A worker for each pair: what it has for ``release``, and whether it reaches the server by the network that stalls.
RELEASES, BY_RELAY = ("request", "transaction"), (False, True)
# A transfer that is acknowledged must survive the server's SIGKILL.
SERVER_OPTIONS = ("--innodb-flush-log-at-trx-commit=1", f"--max-allowed-packet={ledger.LARGEST_PACKET}")
#: Violations that are printed; all are in the records.
TOLD = 20

console = Console()


def options(chance: Random, release: str, has_tls: bool) -> dict[str, Any]:
    """OPTIONS for a worker: fewer connections than it has threads, and much to do for its maintenance."""
    pool = {
        "release": release,
        "pool_size": chance.randint(1, 3),
        "max_overflow": chance.randint(0, 2),
        "timeout": chance.choice((2, 10)),
        "use_lifo": chance.choice((True, False)),
        "min_idle": chance.randint(0, 2),
        "idle_timeout": 2,
        "recycle": 6,
        "ping_after": chance.choice((0, 1, 30)),
        "reset": chance.choice(("dirty", "dirty", "always")),
        "leak_after": 5,
    }
    tls = {"ssl_mode": "REQUIRED"} if has_tls and chance.random() < 0.5 else {}
    return {"pool": pool, "connect_timeout": 3, "read_timeout": 4, "write_timeout": 4, **tls}


def prepared(stack: ExitStack, folder: Path, chance: Random, progress: Progress) -> tuple[Server, Soak]:
    """A server, a ledger and the workers."""
    server = stack.enter_context(server_from_environment(options=SERVER_OPTIONS))
    if isinstance(server, ExistingServer):
        stack.callback(ledger.drop, server)
        before = ledger.query(server, "SELECT @@GLOBAL.max_allowed_packet")[0][0]
        stack.callback(ledger.query, server, f"SET GLOBAL max_allowed_packet = {before}")
        ledger.query(server, f"SET GLOBAL max_allowed_packet = {ledger.LARGEST_PACKET}")
    password = secrets.token_urlsafe(12)
    ledger.create(server, password)
    relay = Relay(server.host, server.port)
    stack.callback(relay.close)
    workers = []
    for number, (release, by_relay) in enumerate(product(RELEASES, BY_RELAY)):
        entry = server.settings(ledger.DATABASE, **options(chance, release, has_tls=not server.is_mariadb))
        entry |= {"ENGINE": ENGINE, "USER": ledger.USER, "PASSWORD": password}
        if by_relay:
            entry["PORT"] = relay.port
        worker = Worker(f"worker {number} ({release})", folder, entry, release)
        stack.callback(worker.kill)
        workers.append(worker)
    return server, Soak(server, relay, workers, chance, progress)


def transfers_of(workers: list[Worker]) -> Table:
    """What became of the transfers, by what their workers have for ``release``, and the errors."""
    table = Table("Transfers", *RELEASES, box=SIMPLE_HEAD)
    records = [[worker.records for worker in workers if worker.release == release] for release in RELEASES]
    for kind in records[0][0].transfers:
        table.add_row(kind, *(f"{sum(len(record.transfers[kind]) for record in each):,}" for each in records))
    table.add_section()
    errors = [sum((record.errors for record in each), Counter()) for each in records]
    for kind, _ in sum(errors, Counter()).most_common():
        table.add_row(f"  {kind}", *(f"{seen[kind]:,}" for seen in errors))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def show(soak: Soak, violations: list[str]) -> None:
    """What was survived, what the workers saw of it, and what must not be."""
    faults = Table("Fault", box=SIMPLE_HEAD)
    faults.add_column("Survived", justify="right")
    survived = sum((worker.records.done for worker in soak.workers), soak.survived)
    for name, times in survived.most_common():
        faults.add_row(name, f"{times:,}")
    console.print(faults, transfers_of(soak.workers))
    console.print(f"After a fault, all processes made transfers again within {soak.longest_recovery:.1f} s.")
    for violation in violations[:TOLD]:
        console.print(violation, style="red", markup=False)
    if len(violations) > TOLD:
        console.print(f"and {len(violations) - TOLD} more", style="red")
    if not violations:
        console.print(
            "No acknowledged commit was lost, none was applied twice, the sum is what it was, and nothing was left over: "
            "no connection, thread or descriptor, and no memory.",
            style="green",
        )


def stop_once(*_: object) -> None:
    """End as Ctrl-C does, and let no second signal disturb the clearing up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the soak; 0 where nothing was seen that must not be."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once)
    folder = Path(tempfile.mkdtemp(prefix="mysqlpool-soak-"))
    console.print(f"SEED={arguments.seed}: the options and the order of the faults; records and logs are in {folder}")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress, ExitStack() as stack:
            server, soak = prepared(stack, folder, Random(arguments.seed), progress)
            soak.run(arguments.minutes * 60)
            violations = soak.finish(server)
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        console.print("Stopped; nothing is left running.")
        return 130
    except (ServerError, MySQLdb.Error) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    show(soak, violations)
    if not violations:
        shutil.rmtree(folder)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
