"""``make benchmark-instructions``: the instructions that a request costs the site's process on each engine.

valgrind counts them, one request after the other in one thread, without a web server. Of times on a shared machine a tenth
is noise; these counts differ by two thousandths from clone to clone, so they tell what a change of the code costs or saves.
What the kernel and the database server do is not in them.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any
from wsgiref.util import setup_testing_defaults

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import ENGINES, PERSISTENT, set_up
from benchmarks.web import VIEWS, site_environment
from devtools.server import Server, server_from_environment

#: Cycles in the two processes whose difference is told: what importing and warming up cost is in both.
FEW, MANY = 50, 150
#: Such pairs are counted for each of these seeds of layout.py, and of Python's hashes, and their mean is told. (More cycles
#: in a process tell nothing more.)
SEEDS = range(8)
console = Console(width=120)


def serve(path: str, requests: int) -> None:
    """In a process of its own: ask the tests' site so many times."""
    from tests.wsgi import application

    gc.collect()
    gc.disable()  # its rounds would be counted to whichever process they fall in
    for _ in range(requests):
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        answer: Any = application(environ, _start_response)
        for _ in answer:
            pass
        answer.close()


def _start_response(status: str, *_: object) -> None:
    if not status.startswith("200"):
        raise SystemExit(f"The site answers {status}.")


def per_cycle(module: list[str], option: str, environment: dict[str, str]) -> float:
    """The instructions of one cycle of a module's process.

    :param module: the module and its arguments
    :param option: its option that says how many cycles it does
    :param environment: what is in the process' environment, beside this one's
    """
    environment = {**os.environ, **environment}

    def command(seed: int, cycles: int) -> list[str]:
        return [sys.executable, "-m", "benchmarks.layout", str(seed), *module, f"{option}={cycles}"]

    def count(seed: int, cycles: int) -> int:
        return _counted(command(seed, cycles), {**environment, "PYTHONHASHSEED": str(seed)})

    # Python compiles what is new; else the first process that is counted would do so.
    _run(command(0, 1), environment)

    with ThreadPoolExecutor(os.cpu_count()) as executor:  # how many run at once changes no count
        few, many = (sum(executor.map(count, SEEDS, repeat(cycles))) for cycles in (FEW, MANY))
    return (many - few) / (MANY - FEW) / len(SEEDS)


def _counted(command: list[str], environment: dict[str, str]) -> int:
    """What valgrind counts of a process."""
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    (number,) = re.findall(r"I\s+refs:\s+([\d,]+)", _run([*valgrind, *command], environment))
    return int(number.replace(",", ""))


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Run a process, and return what it says as errors."""
    told = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if told.returncode:
        raise SystemExit(told.stderr)
    return told.stderr


def must_have_valgrind() -> None:
    """End the process if it is not installed."""
    if shutil.which("valgrind") is None:
        raise SystemExit("missing: valgrind, which counts: apt-get install valgrind")


def measure(server: Server) -> dict[str, dict[str, float]]:
    """Instructions per request, by engine and view."""
    results: dict[str, dict[str, float]] = {engine: {} for engine in ENGINES}
    views = VIEWS["gunicorn threads"]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("instructions", total=len(ENGINES) * len(views))
        for engine in ENGINES:
            environment = site_environment(server, engine)
            for view, path in views.items():
                results[engine][view] = per_cycle(["benchmarks.instructions", f"--path={path}"], "--requests", environment)
                progress.advance(task)
    return results


def show(results: dict[str, dict[str, float]]) -> None:
    """Print thousands, and ratios."""
    table = Table(title=f"Thousands of instructions per request, and x of {PERSISTENT}", title_justify="left")
    table.add_column("", no_wrap=True)
    base = results[PERSISTENT]
    for view in base:
        table.add_column(view, justify="right")
    for engine, views in results.items():
        table.add_row(engine, *(f"{views[view] / 1000:,.0f}  {views[view] / base[view]:.3f}" for view in base))
    console.print(table)


def main() -> None:
    """Count each engine's, or, in a process that is being counted, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.path:
        serve(arguments.path, arguments.requests)
        return
    must_have_valgrind()
    with server_from_environment() as server:
        set_up(server)
        results = measure(server)
    show(results)


if __name__ == "__main__":
    main()
