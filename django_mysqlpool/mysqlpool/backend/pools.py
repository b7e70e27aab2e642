"""The functions for users that are about all pools of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.db import connections

from django_mysqlpool.mysqlpool.pool.fork import notice_fork
from django_mysqlpool.mysqlpool.pool.numbers import holders_of, statistics_of
from django_mysqlpool.mysqlpool.pool.registry import registry

from .aliases import forget_unwanted
from .threads import check_in, in_atomic_block

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.pool import Pool
    from django_mysqlpool.mysqlpool.pool.slot_pool import SlotPool


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
        ``open``, ``idle``, ``out``, ``opening`` (numbers of connections), ``waiting`` (number of threads), ``address``
        (str: the server's, as the socket of the last connection tells; ``None`` before the first) and ``pins`` (dict:
        number of pins by the statement's first word)
    """
    return {pool.name: pool.status() for pool in _pools()}


def pool_statistics() -> dict[str, dict[str, Any]]:
    """Return what each pool of this process has counted since it was made.

    The counts of a pool are all of one moment: ``opened`` is the sum of ``closed`` and ``open``, ``checkouts`` that of
    ``checkins`` and ``out``. Nothing is sent. The lock that it takes is held for microseconds, and not by a checkout that
    finds a connection ready.

    :returns: a dict that ``json.dumps`` accepts. Its keys are those of ``pool_status()``; ``docs/status.md`` explains each
        count and histogram
    """
    return {pool.name: statistics_of(pool) for pool in _pools()}


def pool_holders() -> dict[str, list[dict[str, Any]]]:
    """Return who has the connections of each pool, the longest first; no values of statements, and no query strings."""
    return {pool.name: holders_of(pool) for pool in _pools()}


def drain_pool(using: str | None = None) -> None:
    """Renew every connection of the pools of this process, or of the pool that serves one alias, without a gap in service.

    A connection that is out is closed when it returns. One that is idle is closed, and another one opened for it, by the
    maintenance thread within a second; nobody is handed it meanwhile. Nothing is interrupted, and nothing is waited for.
    Use it after a change of the server, of its address, or of an account.

    :param using: the database alias; default ``None``: all pools
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have the alias
    """
    for pool in _pools(using):
        pool.drain()


def resize_pool(using: str, pool_size: int | None = None, max_overflow: int | None = None) -> None:
    """Change the size of the pool that serves an alias, in this process and until it ends.

    Threads that wait have the new connections at once. Idle connections above the new cap are closed now, others when they
    return. A forked child begins with the sizes of the settings.

    :param using: the database alias
    :param pool_size: as in ``OPTIONS["pool"]``; default ``None``: as it is
    :param max_overflow: as in ``OPTIONS["pool"]``; default ``None``: as it is
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have the alias
    :raises ValueError: if a size is not possible, the alias is not pooled, or its pool class is not the default one
    """
    wrapper: Any = connections[using]
    pool: Pool | None = getattr(wrapper, "pool", None)
    if pool is None:
        raise ValueError(f"Alias '{using}' has no pool.")
    if not pool.source.has_queue:
        raise ValueError(f"Alias '{using}' has a {pool.options.pool_class_name}: only a QueuePool can be resized.")
    source = cast("SlotPool", pool.source)
    size, overflow = source.sizes
    if pool_size is not None:
        size = _checked("pool_size", pool_size, 0)
    if max_overflow is not None:
        overflow = _checked("max_overflow", max_overflow, -1)
    is_limited = size != 0 and overflow != -1
    if is_limited and size + overflow < max(source.min_idle, 1):
        raise ValueError(
            f"pool_size + max_overflow = {size + overflow} of alias '{using}' must be at least min_idle = "
            f"{source.min_idle}, and at least 1."
        )
    source.resize(size, overflow)


def _checked(name: str, value: int, lowest: int) -> int:
    if type(value) is not int or value < lowest:
        raise ValueError(f"{name} must be a whole number, and at least {lowest}, not {value!r}.")
    return value


def _pools(using: str | None = None) -> list[Pool]:
    """The pools of this process, or those that serve one alias."""
    notice_fork()
    if using is not None:
        connections[using]  # raises for an unknown alias
    forget_unwanted()
    return [pool for pool in registry.pools() if using is None or using in pool.aliases]
