"""One run of Django's tests on one engine: a process after the other, and what they have told so far."""

from __future__ import annotations

import json
import os
import shutil
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
#: Seconds without any news after which a process is ended; its log then tells what its threads were doing.
PATIENCE = 600
#: Test modules a process: MariaDB looks into every table to tell of one table's keys, and all modules have 1,700.
BATCH = 12


class Run:
    """Begins at once; ``look`` now and then, until it has ended."""

    def __init__(
        self, environment: Environment, server: Server, engine: str, labels: Sequence[str], processes: int, name: str
    ) -> None:
        self.engine = engine
        self.outcomes = Outcomes()
        self._server = server
        self._folder = environment.run_folder / name / engine
        self._tests = environment.unpack_tests(self._folder)
        labels = labels or modules(self._tests)
        self._batches = [list(labels[start : start + BATCH]) for start in range(0, len(labels), BATCH)]
        self._ended = 0
        records = self._folder / "records"
        records.touch()
        self._records = records.open(encoding="utf-8")
        self._variables = variables(environment, server, engine, records)
        self._command = [str(environment.python), "runtests.py", "--settings=suite_settings", "--noinput"]
        self._command.append(f"--parallel={processes}")
        self._process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes]:
        """A process for the batch whose turn it is."""
        self._news = time.monotonic()
        self._before = len(self.outcomes.by_test)
        with self._log.open("w") as log:
            return subprocess.Popen(
                tied([*self._command, *self._batches[self._ended]]),
                cwd=self._tests,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is not for it
            )

    @property
    def _log(self) -> Path:
        return self._folder / f"{self._ended + 1}.log"

    @property
    def has_ended(self) -> bool:
        """Whether all of it has."""
        return self._ended == len(self._batches)

    @property
    def progress(self) -> float:
        """How much of it has, from 0 to 1."""
        tests = len(self.outcomes.by_test) - self._before
        current = min(tests / self.outcomes.total, 1) if self.outcomes.total and not self.has_ended else 0
        return (self._ended + current) / len(self._batches)

    def look(self) -> None:
        """Read on, end a process that hangs, and begin the next one where one has ended."""
        if self.has_ended:
            return
        has_ended = self._process.poll() is not None
        before = len(self.outcomes.by_test)
        self.outcomes.read_on(self._records)
        if len(self.outcomes.by_test) > before:
            self._news = time.monotonic()
        elif time.monotonic() > self._news + PATIENCE:
            self._process.send_signal(signal.SIGABRT)  # faulthandler writes into the log
        if has_ended:
            self._end_batch()

    def _end_batch(self) -> None:
        if not self._has_ended_well():
            self._server.connect().close()  # where that is gone, nothing that follows tells anything
            self.outcomes.note_broken(self._batches[self._ended], f"{self._log}:\n{tail(self._log)}")
        self._ended += 1
        if not self.has_ended:
            self.outcomes.total = 0
            self._process = self._begin()

    def _has_ended_well(self) -> bool:
        return self._process.returncode in {0, 1} and "\nRan " in self._log.read_text(errors="replace")

    def close(self) -> None:
        """End it in any case, with the processes it has, and leave what it has told."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._records.close()
        shutil.rmtree(self._tests, ignore_errors=True)


def modules(tests: Path) -> list[str]:
    """The labels of all tests, as ``runtests.py`` finds them; those of GeoDjango need another engine."""
    others = {"gis_tests", "import_error_package", "test_runner_apps"}
    names = {path.parent.name for path in tests.glob("*/__init__.py")}
    return sorted(names - others)


def databases(engine: str) -> dict[str, str]:
    """The names of an engine's databases by their aliases. Django's tests run in others, and a few look into these."""
    return {alias: f"suite_{engine}_{alias}" for alias in ("default", "other")}


def variables(environment: Environment, server: Server, engine: str, records: Path) -> dict[str, str]:
    """The environment variables of a process: what ``within`` reads, and little of those of this process."""
    path, options = ENGINES[engine]
    entries = {alias: {"ENGINE": path, **server.settings(name, **options)} for alias, name in databases(engine).items()}
    own = {"DJANGO_SUITE_DATABASES": json.dumps(entries), "DJANGO_SUITE_RECORDS": str(records)}
    kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "PATH", "TMPDIR"}}
    return {**kept, **own, "PYTHONPATH": f"{environment.package}{os.pathsep}{WITHIN}", "PYTHONFAULTHANDLER": "1"}
