"""The functions for users that are about all pools of the process."""

from __future__ import annotations

from typing import Any

from django.db import connections

from django_mysqlpool.mysqlpool.pool.fork import notice_fork
from django_mysqlpool.mysqlpool.pool.registry import registry

from .aliases import forget_unwanted
from .threads import check_in, in_atomic_block


def close_pool(using: str | None = None) -> None:
    """Close the pools of this process, or the pool that serves one alias.

    The calling thread's own connections return first, except those inside an ``atomic()`` block. Idle connections are
    closed now, and those of other threads when they return. Afterwards everything works again, from empty pools. Call it
    before ``os.fork()`` to fork with no connection open.

    :param using: the database alias; default ``None``: all pools
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have the alias
    """
    notice_fork()
    if using is not None:
        connections[using]  # raises for an unknown alias
    check_in(using, keep=in_atomic_block())
    for pool in registry.pools():
        if using is None or using in pool.aliases:
            pool.close()
    forget_unwanted()


def pool_status() -> dict[str, dict[str, Any]]:
    """Return the numbers of each pool of this process, as they are at this moment.

    It waits for no lock and sends nothing, so the numbers of a busy pool may be a moment apart. A pool is listed from its
    first use on.

    :returns: a dict that ``json.dumps`` accepts. Its keys are the pools' names, ``user@host:port/database``. Each value has
        ``aliases`` (list of str), ``pool_class`` (str), ``cap`` (int; ``None``: no limit), ``size`` (int or ``None``),
        ``open``, ``idle``, ``out``, ``opening`` (numbers of connections), ``waiting`` (number of threads) and ``pins``
        (dict: number of pins by the statement's first word)
    """
    notice_fork()
    forget_unwanted()
    return {pool.name: pool.status() for pool in registry.pools()}
