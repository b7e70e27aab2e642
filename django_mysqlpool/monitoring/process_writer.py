"""Has a process write its file, and answer requests, while it has a connection open: at the end of maintenance rounds."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django_mysqlpool.mysqlpool.backend.pools import drain_pool, pool_holders, pool_statistics
from django_mysqlpool.mysqlpool.log import logger, say
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

from .process_files import SETTING, checked_folder, read, remove_stale, replace, start_of, why_not_writable

#: Seconds between two versions of a file; a maintenance round takes half of that.
INTERVAL = 0.9
#: Holders that a file tells of for each pool, the longest first.
MOST_HOLDERS = 10


def write_process_files(value: object) -> None:
    """Have this process and those that it forks write their files from now on.

    :param value: the setting's
    :raises django.core.exceptions.ImproperlyConfigured: as ``checked_folder()``
    """
    folder = checked_folder(value)
    reason = why_not_writable(folder)
    if reason is not None:
        logger.warning("%s is %s: %s. This process' pools will not be seen there.", SETTING, folder, reason)
    writer = ProcessWriter(folder)
    maintenance.after_round.append(writer)
    atexit.register(writer.end)


@dataclass
class _Self:
    """What this process is, and what it has done here. A forked child is another one."""

    pid: int = field(default_factory=os.getpid)
    start: int | None = None
    #: ``time.monotonic()``; 0: there is no file yet.
    written_at: float = 0.0
    #: The maintenance thread has ended, until the next checkout.
    is_resting: bool = False
    #: Of the last request.
    answer: dict[str, Any] | None = None
    has_told_failure: bool = False

    def __post_init__(self) -> None:
        self.start = start_of(self.pid)


class ProcessWriter:
    """Writes the file of the process that calls it; the maintenance thread does, at the end of each round.

    There is no lock, which a fork could leave locked.

    :param folder: where to
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._self = _Self()
        self._has_ended = False

    def __call__(self) -> None:
        """Answer a request if there is one, and write the file if it is time."""
        if self._self.pid != os.getpid():
            self._self = _Self()
        own = self._self
        if self._has_ended or own.start is None:
            return
        try:
            is_due = self._answer(own) or time.monotonic() - own.written_at >= INTERVAL
            # The thread ends with the last connection, and before a fork; it may begin again with the next checkout.
            is_resting = maintenance.thread is None
            if is_due or is_resting or own.is_resting:
                own.is_resting = is_resting
                self._write(own)
        except Exception as error:  # the maintenance of the pools goes on, whatever becomes of this
            if not own.has_told_failure:
                own.has_told_failure = True
                say(logging.WARNING, "The status of this process can't be written into %s: %s", self._folder, error)

    def _answer(self, own: _Self) -> bool:
        request = read(self._folder / f"mysqlpool-{own.pid}.request")
        if request is None:
            return False
        (self._folder / f"mysqlpool-{own.pid}.request").unlink(missing_ok=True)
        if request.get("start") != own.start:  # it was to a process of the same number
            return False
        own.answer = {"id": request.get("id"), "error": None}
        try:
            drain_pool(request.get("using"))
        except Exception as error:
            own.answer["error"] = f"{type(error).__name__}: {error}"
        return True

    def _write(self, own: _Self) -> None:
        if not own.written_at:
            remove_stale(self._folder)
        own.written_at = time.monotonic()
        holders = {name: held[:MOST_HOLDERS] for name, held in pool_holders().items()}
        report = {
            "pid": own.pid,
            "start": own.start,
            "program": program(sys.argv),
            "monotonic": own.written_at,
            "is_resting": own.is_resting,
            "pools": {name: {**status, "holders": holders.get(name, [])} for name, status in pool_statistics().items()},
            "answer": own.answer,
        }
        path = self._folder / f"mysqlpool-{own.pid}.json"
        replace(path, report)
        own.has_told_failure = False
        if self._has_ended:
            path.unlink(missing_ok=True)

    def end(self) -> None:
        """At the process' end: remove its file. A round that is under way now removes what it writes."""
        self._has_ended = True
        with suppress(OSError):
            for name in ("json", "request"):
                (self._folder / f"mysqlpool-{os.getpid()}.{name}").unlink(missing_ok=True)


def program(argv: list[str]) -> str:
    """The name of a process' program, without its arguments, which may hold secrets."""
    path = Path(argv[0] if argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    is_django = name in {"manage.py", "django-admin"} and len(argv) > 1 and re.fullmatch(r"\w+", argv[1])
    if is_django:
        return f"{name} {argv[1]}"
    return "python" if not name or name.startswith("-") else name
