"""What a worker tells: a file of lines, written as it happens, which outlives the worker, and its reading."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

#: In the environment of a worker: its entry of DATABASES.
VARIABLE = "MYSQLPOOL_SOAK_DATABASE"
#: A transfer whose commit returned, one whose commit failed or of which no more is known than that it was begun, and one
#: that never came to its commit.
ACKNOWLEDGED, UNKNOWN, FAILED = "acknowledged", "unknown", "failed"
#: How many bytes the worker has, what it has done that is a fault of its own, and what it has seen that must not be.
MEMORY, DONE, VIOLATION = "memory", "done", "violation"


class Recorder:
    """Appends lines, from any thread and from forked children: each is one write, and there is no buffer to lose."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def record(self, kind: str, what: Any, error: str = "") -> None:
        """Note one thing; when this returns it can't be lost."""
        os.write(self._descriptor, json.dumps([kind, what, error]).encode() + b"\n")


class Records:
    """Reads on in a file that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.transfers: dict[str, set[str]] = {ACKNOWLEDGED: set(), UNKNOWN: set(), FAILED: set()}
        self.errors: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.memory: list[int] = []
        self.violations: list[str] = []

    @property
    def acknowledged(self) -> int:
        """How many transfers are known to have been committed."""
        return len(self.transfers[ACKNOWLEDGED])

    def read_on(self) -> None:
        """Take in what has been written since the last time, whole lines only."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._take(*json.loads(line))

    def _take(self, kind: str, what: Any, error: str) -> None:
        if kind in self.transfers:
            if kind != UNKNOWN:
                self.transfers[UNKNOWN].discard(what)  # told before its beginning
            self.transfers[kind].add(what)
            if error:
                self.errors[error] += 1
        elif kind == MEMORY:
            self.memory.append(what)
        elif kind == DONE:
            self.done[what] += 1
        else:
            self.violations.append(what)
