"""Private names of SQLAlchemy's, looked for when this module is imported: with the first pool, not with the backend."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import sqlalchemy
import sqlalchemy.pool
from sqlalchemy.pool import Pool

from django_mysqlpool.mysqlpool.compat import look_for

from .locks import WITH_HAS_A_GAP, RLock

_SQLALCHEMY = f"SQLAlchemy {sqlalchemy.__version__}"
_base: Any = import_module("sqlalchemy.pool.base")
#: The record of a connection, which events are told of: a pool class makes it only under this name.
ConnectionRecord: Any
(ConnectionRecord,) = look_for(_base, "_ConnectionRecord", of=_SQLALCHEMY)
#: The part of a dialect that a pool needs: how to close a connection.
(ConnDialect,) = look_for(_base, "_ConnDialect", of=_SQLALCHEMY)
look_for(_base.Pool, "_do_get", "_do_return_conn", "_close_connection", "_should_log_debug", of=_SQLALCHEMY)
if WITH_HAS_A_GAP:
    look_for(import_module("sqlalchemy.event.attr")._CompoundListener, "_exec_once_mutex", of=_SQLALCHEMY)
look_for(sqlalchemy.pool.QueuePool, "_do_get", "_do_return_conn", of=_SQLALCHEMY)
_QueueEmpty: type[Exception]
(_QueueEmpty,) = look_for(import_module("sqlalchemy.util.queue"), "Empty", of=_SQLALCHEMY)


def prepare_events(pool: Pool) -> None:
    """Make the lists of the two events that SQLAlchemy makes at the first connect.

    SQLAlchemy before 2.1 makes them without a lock: of two threads that connect first at the same time, one fails with an
    AssertionError. On Python 3.14 an interrupt would leave the lock locked that SQLAlchemy takes at the first connect, so
    it gets one of ours.
    """
    for name in ("first_connect", "connect"):
        listeners = getattr(pool.dispatch, name).for_modify(pool.dispatch)
        if WITH_HAS_A_GAP:
            listeners._exec_once_mutex = RLock()


def logs_checkouts(pool: Pool) -> bool:
    """True if the pool logs each checkout and checkin: ``echo="debug"``."""
    return pool._should_log_debug()


def queue_pool_limit(pool: sqlalchemy.pool.QueuePool) -> int | None:
    """The most connections of SQLAlchemy's own QueuePool; ``None``: no limit."""
    return None if pool._max_overflow < 0 else pool.size() + pool._max_overflow


def idle_record(pool: sqlalchemy.pool.QueuePool) -> Any:
    """Take an idle record out of SQLAlchemy's own QueuePool; ``None``: there is none."""
    try:
        return pool._pool.get(block=False)
    except _QueueEmpty:
        return None


def put_back(pool: sqlalchemy.pool.QueuePool, record: Any) -> None:
    """Put a record back into SQLAlchemy's own QueuePool."""
    pool._do_return_conn(record)
