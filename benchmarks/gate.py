"""``make benchmark-gate``: what a cycle costs in instructions, in four forms, and whether that is what is expected.

A cycle is checkout, one ORM query, checkin. valgrind counts it, so no noise of the machine is in it, and each form is told
as a multiple of the stock engine's cycle on a persistent connection, counted in the same run. ``expected.json`` has the
multiples of each Python. A commit that changes one by more than the tolerance changes the file too, by ``--update``.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cycle import PERSISTENT, set_up
from benchmarks.instructions import must_have_valgrind, per_cycle
from benchmarks.web import site_environment
from devtools.server import Server, server_from_environment

EXPECTED = Path(__file__).with_name("expected.json")
PYTHON = "{}.{}".format(*sys.version_info)
#: Part by which a figure may differ.
TOLERANCE = 0.02
OURS = "django-mysqlpool"
FORMS = ("held", "middleware", "close", "new thread")
console = Console(width=120)


def action_of(form: str) -> Callable[[], object]:
    """One cycle, as this form has it; ``held`` closes nothing."""
    from django.db import connection
    from django.http import HttpRequest, HttpResponse

    from django_mysqlpool import auto_close_db
    from django_mysqlpool.middleware import ConnectionReleaseMiddleware
    from tests.urls import query

    def close() -> None:
        query()
        connection.close()

    def new_thread() -> None:
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()

    in_thread = auto_close_db(query)
    request, response = HttpRequest(), HttpResponse()

    def view(_: HttpRequest) -> HttpResponse:
        query()
        return response

    middleware = ConnectionReleaseMiddleware(view)
    forms: dict[str, Callable[[], object]] = {
        "held": query,
        "middleware": lambda: middleware(request),
        "close": close,
        "new thread": new_thread,
    }
    return forms[form]


def perform(form: str, cycles: int) -> None:
    """In a process that is being counted: so many cycles."""
    import django

    from django_mysqlpool.mysqlpool.pool import maintenance

    maintenance.ROUND = 1e6  # its rounds come by the clock, and a slow machine has more of them in a cycle
    django.setup()
    action = action_of(form)
    gc.collect()
    gc.disable()  # its rounds would be counted to whichever process they fall in
    for _ in range(cycles):
        action()


def measure(server: Server) -> dict[str, float]:
    """The multiples of each form."""

    def cost(engine: str, form: str) -> float:
        environment = {**site_environment(server, engine), "DJANGO_SETTINGS_MODULE": "tests.settings"}
        cycle = per_cycle(["benchmarks.gate", f"--form={form}"], "--cycles", environment)
        progress.advance(task)
        return cycle

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("instructions", total=len(FORMS) + 1)
        base = cost(PERSISTENT, "held")
        return {form: round(cost(OURS, form) / base, 4) for form in FORMS}


def show(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Print the table.

    :returns: the forms that are not as expected
    """
    table = Table(title=f"Instructions of a cycle, x of {PERSISTENT}, Python {PYTHON}", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("found", "expected", "difference"):
        table.add_column(heading, justify="right")
    wrong = []
    for form, value in found.items():
        wanted = expected.get(form)
        difference = 0.0 if wanted is None else value / wanted - 1
        if abs(difference) > TOLERANCE:
            wrong.append(form)
        told = ("-", "-") if wanted is None else (f"{wanted:.3f}", f"{difference:+.1%}")
        table.add_row(form, f"{value:.3f}", *told, style="red" if form in wrong else None)
    console.print(table)
    return wrong


def main() -> int:
    """Compare; or, in a process that is being counted, perform."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write what is found into expected.json")
    parser.add_argument("--form", help=argparse.SUPPRESS)
    parser.add_argument("--cycles", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        perform(arguments.form, arguments.cycles)
        return 0
    must_have_valgrind()
    with server_from_environment() as server:
        set_up(server)
        found = measure(server)
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    wrong = show(found, expected.get(PYTHON, {}))
    if arguments.update:
        EXPECTED.write_text(json.dumps({**expected, PYTHON: found}, indent=2, sort_keys=True) + "\n")
        return 0
    if PYTHON not in expected:
        console.print(f"expected.json says nothing of Python {PYTHON}; --update notes these figures.")
    if wrong:
        console.print(
            f"Not as expected: {', '.join(wrong)}. If that is meant, --update and commit the file with the change."
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
