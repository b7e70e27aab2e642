"""``manage.py mysqlpool`` in a process of its own, and processes with a pool for it to look at."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from django_mysqlpool.management.commands.mysqlpool import Command

ENGINE = "django_mysqlpool.backends.mysqlpool"
_FOLDER_OF_SETTINGS = Path(__file__).resolve().parent.parent
# What the environment of the tests may have, and what is read from it.
_READ = ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS", "UVICORN_WORKERS", "FORCE_COLOR", "COLUMNS")


def environment(databases: dict[str, Any], folder: object = None, **more: str) -> dict[str, str]:
    """The environment of a process with these aliases; ``default`` is that of the tests unless it is given."""
    found = {name: value for name, value in os.environ.items() if name not in _READ}
    found |= {"DJANGO_SETTINGS_MODULE": "tests.command_settings", "PYTHONPATH": str(_FOLDER_OF_SETTINGS)}
    found["MYSQLPOOL_TEST_DATABASES"] = json.dumps(
        {alias: {"ENGINE": ENGINE, **entry} for alias, entry in databases.items()}
    )
    if folder is not None:
        found["MYSQLPOOL_TEST_STATUS_FOLDER"] = json.dumps(str(folder) if isinstance(folder, Path) else folder)
    return found | more


def run(*arguments: str, databases: Any = None, folder: object = None, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, with all that it says."""
    return subprocess.run(
        [sys.executable, "-m", "django", "mysqlpool", *arguments],
        env=environment(databases or {}, folder, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_here(*arguments: str, databases: Any = None, folder: Path | None = None, **more: str) -> Any:
    """The same in this process, which is quicker."""
    out, code, error = StringIO(), 0, ""
    entries = {"default": connections.settings["default"]}
    entries |= {alias: {"ENGINE": ENGINE, **entry} for alias, entry in (databases or {}).items()}
    read = {name: value for name, value in os.environ.items() if name not in _READ}
    with (
        patch.dict(connections.settings, connections.configure_settings(entries)),
        override_settings(MYSQLPOOL_STATUS_FOLDER=folder),
        patch.dict(os.environ, {**read, **more}, clear=True),
    ):
        try:
            call_command(Command(), *arguments, stdout=out)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except CommandError as failed:
            code, error = failed.returncode, str(failed)
        for alias in databases or {}:
            if hasattr(connections._connections, alias):
                del connections[alias]
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error)


def start(*arguments: str, databases: Any = None, folder: object = None, **how: Any) -> subprocess.Popen[str]:
    """The command, which goes on."""
    command = [sys.executable, "-m", "django", "mysqlpool", *arguments]
    return subprocess.Popen(command, env=environment(databases or {}, folder), text=True, **how)


_SCRIPT = """
import os, signal, sys, threading
import django
django.setup()
from django.db import OperationalError, connection
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

def give_back():
    connection.close()

def fork():
    pid = os.fork()
    if pid == 0:
        ask()
        signal.pause()
    return pid

def ask_elsewhere():
    said = []

    def ask_once():
        try:
            said.append(ask())
        except OperationalError as error:
            said.append(type(error).__name__)
        finally:
            connection.close()

    thread = threading.Thread(target=ask_once)
    thread.start()
    thread.join()
    return said[0]

rounds = []

def count_rounds():
    maintenance.after_round.append(lambda: rounds.append(1))

for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class PooledProcess:
    """A process that evaluates what it is told; it knows ``ask()``, ``give_back()``, ``fork()`` and more."""

    def __init__(self, databases: Any = None, folder: object = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            env=environment(databases or {}, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __call__(self, expression: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{expression}\n")
        self._process.stdin.flush()
        return ast.literal_eval(self._process.stdout.readline())

    def end(self) -> str:
        """Let it come to its end; what it has said on the way."""
        _, said = self._process.communicate(timeout=60)
        return said

    def kill(self) -> None:
        """Leave nothing of it."""
        self._process.kill()
        self._process.communicate(timeout=60)
