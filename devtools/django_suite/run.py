"""One run of Django's tests on one engine: a process, and what it has told so far."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devtools.django_suite.environment import WITHIN, Environment
from devtools.django_suite.outcomes import Outcomes
from devtools.lifeline import tied
from devtools.server import Server, tail

STOCK = "stock"
#: The engines by the names that ``make django-suite MODES=`` takes.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    STOCK: ("django.db.backends.mysql", {}),
    "request": ("django_mysqlpool.backends.mysqlpool", {"pool": {"release": "request"}}),
    "transaction": ("django_mysqlpool.backends.mysqlpool", {"pool": {"release": "transaction"}}),
}
#: Seconds without any news after which a run is ended; its log then tells what its threads were doing.
PATIENCE = 600


class Run:
    """Starts at once; ``look`` now and then, until it has ended."""

    def __init__(
        self, environment: Environment, server: Server, engine: str, labels: Sequence[str], processes: int, name: str
    ) -> None:
        self.engine = engine
        self.outcomes = Outcomes()
        self._news = time.monotonic()
        folder = environment.run_folder / name / engine
        tests = environment.unpack_tests(folder)
        self.log = folder / "log"
        records = folder / "records"
        records.touch()
        self._records = records.open(encoding="utf-8")
        command = [str(environment.python), "runtests.py", "--settings=suite_settings", "--noinput"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                tied([*command, f"--parallel={processes}", *labels]),
                cwd=tests,
                env=self._variables(server, records, environment.package),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is not for it
            )

    def _variables(self, server: Server, records: Path, package: Path) -> dict[str, str]:
        engine, options = ENGINES[self.engine]
        databases = {
            alias: {"ENGINE": engine, **server.settings(f"suite_{self.engine}_{alias}", **options)}
            for alias in ("default", "other")
        }
        own = {"DJANGO_SUITE_DATABASES": json.dumps(databases), "DJANGO_SUITE_RECORDS": str(records)}
        kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "PATH", "TMPDIR"}}
        return {**kept, **own, "PYTHONPATH": f"{package}{os.pathsep}{WITHIN}", "PYTHONFAULTHANDLER": "1"}

    @property
    def has_ended(self) -> bool:
        """Whether the process has."""
        return self.process.poll() is not None

    @property
    def has_ended_well(self) -> bool:
        """Whether all tests have been run: all but those whose class or module could not be set up."""
        return self.has_ended and self.process.returncode in {0, 1} and "\nRan " in self.log.read_text(errors="replace")

    def look(self) -> None:
        """Read on, and end a run that hangs."""
        before = len(self.outcomes.by_test)
        self.outcomes.read_on(self._records)
        if len(self.outcomes.by_test) > before:
            self._news = time.monotonic()
        elif time.monotonic() > self._news + PATIENCE and not self.has_ended:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes into the log

    def tail(self) -> str:
        """The end of its log."""
        return tail(self.log)

    def kill(self) -> None:
        """End it in any case, with the processes it has."""
        if not self.has_ended:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._records.close()
