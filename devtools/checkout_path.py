"""The functions that a checkout runs through, counted as they run: for docs/architecture.md.

``python -m devtools.checkout_path`` starts a private server, records a cold and a warm checkout, and writes the lists into
the page. ``tests/test_architecture.py`` records them again and compares.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import django_mysqlpool

PACKAGE = Path(django_mysqlpool.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- checkout path: begin -->\n", "<!-- checkout path: end -->\n"


def functions_of(action: Callable[[], object]) -> list[str]:
    """Call ``action``, and tell the package's functions that ran, in the order of their first calls.

    :returns: such as ``pool/pool.py checkout``
    """
    found: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE) + os.sep) and not code.co_name.startswith("<"):
            file = Path(code.co_filename).relative_to(PACKAGE)
            found[f"{file.relative_to('mysqlpool') if file.parts[0] == 'mysqlpool' else file} {code.co_name}"] = None

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return list(found)


def described(cold: list[str], warm: list[str]) -> str:
    """The part of the page between the marks."""
    lines = [BEGIN]
    for name, functions in (("warm", warm), ("cold", cold)):
        files = {function.split()[0] for function in functions}
        lines.append(f"A {name} checkout runs through {len(functions)} functions in {len(files)} files:\n\n```text\n")
        lines += [f"{function}\n" for function in functions]
        lines.append("```\n\n")
    lines.append(END)
    return "".join(lines)


def record(wrapper: Any) -> tuple[list[str], list[str]]:
    """A cold checkout, up to the driver's connect, and then a warm one, of a wrapper whose pool exists."""
    wrapper.ensure_connection()
    wrapper.close_pool()
    wrapper.check_in()
    made: list[list[str]] = []
    for _ in range(2):
        params = wrapper.get_connection_params()
        made.append(functions_of(partial(wrapper.get_new_connection, params)))
        wrapper.connection = wrapper.lease.session.connection
        wrapper.check_in()
    cold, warm = made
    return cold[: cold.index("drivers/mysqlclient.py open") + 1], warm


def main() -> None:
    """Write the lists into the page."""
    from benchmarks.cycle import add_alias, set_up
    from devtools.server import server_from_environment

    with server_from_environment() as server:
        set_up(server)
        from django.db import connections

        engine = "django_mysqlpool.backends.mysqlpool"
        entries = [{"ENGINE": engine, "OPTIONS": {"pool": {"pool_size": size}}} for size in (1, 2)]
        first, second = (connections[add_alias(server, False, entry)] for entry in entries)
        first.ensure_connection()  # so that nothing is done for the first time
        first.close()
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + described(*record(second)) + rest.split(END)[1])
        for wrapper in (first, second):
            wrapper.close_pool()


if __name__ == "__main__":
    main()
