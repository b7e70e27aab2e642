"""Records the statements that pass Django's cursors, here and, by ``tests.settings``, in processes that are started."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

#: In the environment: the file to append to.
VARIABLE = "MYSQLPOOL_TEST_CORPUS"


class Recorder:
    """An entry of ``execute_wrappers``, on each wrapper that connects; it appends each statement to the file, once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: set[str] = set()

    def install(self, connection: Any, **_: object) -> None:
        """Receives ``connection_created``."""
        if self not in connection.execute_wrappers:
            connection.execute_wrappers.append(self)

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        text = str(sql)
        if text not in self._known:
            self._known.add(text)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, json.dumps(text).encode() + b"\n")  # one write: others append, too
            os.close(descriptor)
        return execute(sql, params, many, context)


def record_if_wanted() -> None:
    """In a process that a recording test starts."""
    if VARIABLE in os.environ:
        connection_created.connect(Recorder(os.environ[VARIABLE]).install, weak=False)


@contextmanager
def recording(path: Path) -> Iterator[Callable[[], set[str]]]:
    """Record for as long as the block lasts; what was recorded."""
    recorder = Recorder(str(path))
    connection_created.connect(recorder.install)
    os.environ[VARIABLE] = str(path)
    try:
        yield lambda: {json.loads(line) for line in path.read_text().splitlines()} if path.exists() else set()
    finally:
        del os.environ[VARIABLE]
        connection_created.disconnect(recorder.install)
