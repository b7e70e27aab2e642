"""Process files: by small files in a folder this host's processes tell of their pools, and are asked to do something.

``MYSQLPOOL_STATUS_FOLDER`` names the folder. A process writes ``mysqlpool-PID.json``, and ``manage.py mysqlpool`` reads it.
A request to a process is ``mysqlpool-PID.request``, which it removes, does, and answers in its own file. A file is replaced
in one step, so a reader sees an old one or a new one, and only the process' user (and root) may read it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

SETTING = "MYSQLPOOL_STATUS_FOLDER"
#: Seconds without a new version after which a process that has connections open counts as silent.
SILENT_AFTER = 5.0

#: A file of a process', a request to one, or what a process that was killed has not renamed any more.
_NAME = re.compile(r"\.?mysqlpool-(\d+)(?:\.json|\.request|-.*)")


def start_of(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since it booted; ``None``: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])  # see proc(5): the state, and starttime


def checked_folder(value: object) -> Path:
    """Check the setting.

    :param value: its value
    :returns: the folder, which may be missing: a site has to start without its monitoring, too
    :raises django.core.exceptions.ImproperlyConfigured: if it is no absolute path, or leads to what is no folder, or to one
        that everybody may write into: whoever can write there can have the site's connections renewed
    """
    if not isinstance(value, (str, os.PathLike)) or not (folder := Path(os.fspath(value))).is_absolute():
        raise ImproperlyConfigured(f"{SETTING} is {value!r}; it must be the absolute path of a folder, or None.")
    try:
        mode = folder.stat().st_mode
    except OSError:
        return folder
    if not stat.S_ISDIR(mode):
        raise ImproperlyConfigured(f"{SETTING} is {value!r}, which is not a folder.")
    if mode & stat.S_IWOTH:
        raise ImproperlyConfigured(
            f"{SETTING} is {value!r}, which every user of the machine may write into; name a folder of the site's own."
        )
    return folder


def why_not_writable(folder: Path) -> str | None:
    """Tell why this process can't write into the folder; ``None``: it can."""
    if not folder.is_dir():
        return "there is no such folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else "this process' user may not write there"


def replace(path: Path, content: dict[str, Any], owner: os.stat_result | None = None) -> None:
    """Write a file, in one step for those who read it.

    :param path: which
    :param content: what ``json.dumps`` accepts
    :param owner: whose file it is to be, if root writes it
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".mysqlpool-{os.getpid()}-", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
        if owner is not None and os.geteuid() == 0:
            os.chown(temporary, owner.st_uid, owner.st_gid)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any] | None:
    """A file's content; ``None``: there is none, or none of ours."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@dataclass
class Process:
    """A process of this host, as its file tells."""

    pid: int
    start: int
    program: str
    #: Seconds since it has written.
    age: float
    #: By their names: the numbers of ``pool_statistics()``, and ``holders``.
    pools: dict[str, dict[str, Any]]
    #: It writes, and answers, no more until its next checkout: it has no connection open, or has forked and has no other
    #: thread.
    is_resting: bool
    #: To the last request: its ``id``, and an ``error`` or ``None``.
    answer: dict[str, Any] | None

    @property
    def open(self) -> int:
        return sum(pool["open"] for pool in self.pools.values())

    @property
    def is_silent(self) -> bool:
        """True if it has connections open, and yet writes no more: it hangs, is stopped, or can't write."""
        return self.open > 0 and self.age > SILENT_AFTER and not self.is_resting


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.iterdir()):
        found = _NAME.fullmatch(path.name)
        if found is not None:
            yield path, int(found[1])


def read_processes(folder: Path) -> tuple[list[Process], int]:
    """Read the files of the processes that live, and remove those of the others.

    :param folder: where they are
    :returns: the processes, and the number of files that this process' user may not read
    :raises OSError: if the folder can't be read
    """
    remove_stale(folder)
    processes, unreadable = [], 0
    for path, pid in _files(folder):
        if path.suffix != ".json":
            continue
        try:
            content = read(path)
            if content is not None and content["start"] == start_of(pid):
                processes.append(_process(pid, content))
        except OSError:
            unreadable += 1
        except (KeyError, TypeError):  # something else of that name
            continue
    return processes, unreadable


def _process(pid: int, content: dict[str, Any]) -> Process:
    age = max(time.monotonic() - content["monotonic"], 0.0)  # which is one clock for all processes of a machine
    told = {key: content[key] for key in ("start", "program", "pools", "is_resting", "answer")}
    return Process(pid=pid, age=age, **told)


def remove_stale(folder: Path) -> None:
    """Remove the files of processes that have ended without doing so: killed, or ended by ``os._exit()``."""
    for path, pid in _files(folder):
        with suppress(OSError):
            start = start_of(pid)
            content = read(path) if start is not None and not path.name.startswith(".") else None
            if start is None or (content is not None and content.get("start") != start):
                path.unlink(missing_ok=True)


def request_drain(folder: Path, process: Process, using: str | None) -> str | None:
    """Ask a process to renew its connections.

    :param folder: where the files are
    :param process: which one
    :param using: the database alias; ``None``: all pools
    :returns: the request's id, which the answer has; ``None``: the process has just ended
    """
    identity = os.urandom(8).hex()
    try:
        owner = (folder / f"mysqlpool-{process.pid}.json").stat()
    except FileNotFoundError:
        return None
    request = {"id": identity, "start": process.start, "using": using}
    replace(folder / f"mysqlpool-{process.pid}.request", request, owner)
    return identity


def withdraw(folder: Path, process: Process) -> None:
    """Remove a request that was not taken."""
    (folder / f"mysqlpool-{process.pid}.request").unlink(missing_ok=True)
