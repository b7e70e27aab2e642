"""``make django-suite DJANGO=6.1 LABELS="backends schema"``: Django's tests on this engine and the stock one, compared."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from contextlib import ExitStack

import MySQLdb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from devtools.django_suite.environment import Environment, EnvironmentProblem
from devtools.django_suite.outcomes import EXPECTED, FAILED, PASSED, SKIPPED, Difference, Outcomes
from devtools.django_suite.run import ENGINES, STOCK, databases
from devtools.django_suite.suite import Judgement, Suite
from devtools.server import PrivateServer, Server, ServerError, server_from_environment

#: Nothing here has to survive a crash.
SERVER_OPTIONS = (
    "--innodb-buffer-pool-size=128M",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
)

#: Lines of a traceback; all are in the records.
TOLD = 12

console = Console()


def show_counts(outcomes: dict[str, Outcomes], title: str) -> None:
    """A row for each engine."""
    table = Table("Engine", box=SIMPLE_HEAD, title=title)
    kinds = (PASSED, SKIPPED, EXPECTED, FAILED)
    for heading in ("tests", *kinds):
        table.add_column(heading.capitalize(), justify="right")
    for engine, outcome in outcomes.items():
        table.add_row(engine, f"{len(outcome.by_test):,}", *(f"{outcome.count(kind):,}" for kind in kinds))
    console.print(table)


def say(text: str, style: str = "") -> None:
    """A line as it is, however long."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show_difference(difference: Difference, why: str = "", style: str = "") -> None:
    """A test that differs, and why."""
    say(f"  {difference.test}: {difference.pooled}, and {difference.stock} on the stock engine", style)
    if why:
        say(f"    {why}")


def show_judgement(engine: str, judgement: Judgement) -> None:
    """What an engine differs in; those that are right, by their reasons."""
    numbers = f"{len(judgement.right)} differences that are right, {len(judgement.left)} that nothing explains"
    say(f"{engine}: {numbers}, {len(judgement.passing)} that passed by", style="bold")
    for reason in dict.fromkeys(judgement.reasons[difference.test] for difference in judgement.right):
        say(f"  {reason}")
        for difference in judgement.right:
            if judgement.reasons[difference.test] == reason:
                say(f"    {difference.test}")
    for difference in judgement.passing:
        show_difference(difference, "Not so when it was run once more, alone.", style="yellow")
    for difference in judgement.left:
        show_difference(difference, "\n".join(difference.detail.strip().splitlines()[-TOLD:]), style="red")
    for test in judgement.outdated:
        say(f"  {test} is listed as a difference, and is none", style="yellow")


def stop_once(*_: object) -> None:
    """End as Ctrl-C does, and let no second signal disturb the clearing up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def prepared_servers(engines: list[str], stack: ExitStack) -> dict[str, Server]:
    """A server for each engine, or the one that there is: each has databases of its own there."""
    servers = {engine: stack.enter_context(server_from_environment(options=SERVER_OPTIONS)) for engine in engines}
    for engine, server in servers.items():
        if isinstance(server, PrivateServer):
            server.load_time_zones()
        for name in databases(engine).values():
            run_statement(server, f"CREATE DATABASE IF NOT EXISTS {name}")
            stack.callback(run_statement, server, f"DROP DATABASE {name}")
    return servers


def run_statement(server: Server, statement: str) -> None:
    """On a connection of its own."""
    connection = server.connect()
    connection.query(statement)
    connection.close()


def run_suite(arguments: argparse.Namespace) -> bool:
    """Set up, run, compare; whether no difference is left unexplained."""
    environment = Environment(arguments.django)
    with console.status("Setting up") as status:
        environment.make(status.update)
    with ExitStack() as stack:
        stack.push(lambda error, *_: shutil.rmtree(environment.run_folder) if error else None)
        servers = prepared_servers([STOCK, *(mode for mode in arguments.modes if mode != STOCK)], stack)
        suite = Suite(environment, servers, console)
        outcomes = suite.run(arguments.labels, arguments.processes)
        judgements = suite.judge(outcomes)
    server = servers[STOCK]
    kind = "MariaDB" if server.is_mariadb else "MySQL"
    show_counts(outcomes, f"Django {environment.version}, {kind} {server.version}")
    for test in outcomes[STOCK].failed():
        say(f"  {test}: failed on the stock engine")
    for engine, judgement in judgements.items():
        show_judgement(engine, judgement)
    if any(judgement.left for judgement in judgements.values()):
        say(f"Logs and records are in {environment.run_folder}")
        return False
    shutil.rmtree(environment.run_folder)
    return True


def main() -> int:
    """Run it; 0 where the pooled engines do as the stock one does."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make django-suite")
    parser.add_argument("labels", nargs="*", help="Django's own test labels; without any, all tests are run")
    parser.add_argument("--django", default="6.1", help="a version or the beginning of one (default: 6.1)")
    parser.add_argument("--modes", nargs="+", choices=sorted(ENGINES), default=["request", "transaction"])
    parser.add_argument("--processes", type=int, default=1, help="of each engine's run (default: 1)")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once)
    try:
        return 0 if run_suite(parser.parse_args()) else 1
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    except (EnvironmentProblem, ServerError, MySQLdb.Error) as error:
        console.print(str(error), style="red", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
