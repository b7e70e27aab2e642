"""A WSGI application, or a module of the fork server's, that opens a connection when it is imported: before the fork."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import django

django.setup()

from django.db import connection  # noqa: E402

from django_mysqlpool import auto_close_db, pool_status  # noqa: E402


def own_id() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]


of_master = own_id()


@auto_close_db
def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Which process answers, on which connection, and what it knew of pools before."""
    before = sum(pool["open"] for pool in pool_status().values())
    answer = {"pid": os.getpid(), "of_master": of_master, "own": own_id(), "open_before": before}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
