"""The pools of this process: which pool serves which alias, and what users ask of all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from django.db import connections

from . import house
from .forks import abandon
from .options import PoolOptions
from .pool import Pool

if TYPE_CHECKING:
    from .wrapper import PooledDatabaseMixin

_SECRETS = {"password", "passwd"}

_pools: list[Pool] = []
_lock = threading.RLock()
#: The process that the pools are of.
_pid = os.getpid()
_noticing = threading.Lock()
# During a fork: the pools whose lock is held.
_held_for_fork: list[Pool] = []


def pool_for(wrapper: PooledDatabaseMixin, params: Mapping[str, Any], options: PoolOptions) -> Pool:
    """The pool for connections with these parameters and options; made where there is none yet.

    The password is not part of what tells pools apart: it may rotate, and a user of the server has one.
    """
    identity = {
        **{key: value for key, value in params.items() if key not in _SECRETS},
        "wrapper": type(wrapper),
        "isolation_level": wrapper.isolation_level,
        "autocommit": wrapper.settings_dict["AUTOCOMMIT"],
        "pool": options,
    }
    pool = _find(identity)
    if pool is None:
        with _lock:
            pool = _find(identity)
            if pool is None:
                pool = Pool(_name(params), identity, options)
                _pools.append(pool)
    if wrapper.alias not in pool.aliases:
        pool.aliases.add(wrapper.alias)
    return pool


def _find(identity: Mapping[str, Any]) -> Pool | None:
    # A process has a handful of pools; comparing them copes with values that can't be hashed.
    for pool in _pools:
        if pool.identity == identity:
            return pool
    return None


def _name(params: Mapping[str, Any]) -> str:
    """``user@host:port/database``, with a number where another pool has that name."""
    place = params.get("unix_socket") or f"{params.get('host', 'localhost')}:{params.get('port', 3306)}"
    base = f"{params.get('user', '')}@{place}/{params.get('database', '')}"
    taken = {pool.name for pool in _pools}
    names = (base if n == 1 else f"{base}#{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def close_pool(using: str | None = None) -> None:
    """Close the pools of this process, or the one that serves the alias ``using``.

    The calling thread's own connections are given back first, except inside an ``atomic()`` block. What is idle is
    closed now; what another thread holds is closed when that thread gives it back. Afterwards everything works again,
    from empty pools. Call it before ``os.fork()`` to fork with no connection open.

    Raises ``ConnectionDoesNotExist`` for an alias that ``DATABASES`` does not have.
    """
    notice_fork()
    if using is not None:
        connections[using]  # raises for an unknown alias
    give_back(using, keep=in_atomic_block())
    for pool in _serving(using):
        pool.close()


def _serving(using: str | None) -> Iterator[Pool]:
    return (pool for pool in tuple(_pools) if using is None or using in pool.aliases)


def give_back(using: str | None = None, *, keep: AbstractSet[str] = frozenset()) -> None:
    """Give the calling thread's pooled connections back, rolled back, except those of the aliases in ``keep``."""
    for wrapper in _initialized():
        if wrapper.pool_options is not None and wrapper.alias not in keep and using in (None, wrapper.alias):
            wrapper.give_back()


def in_atomic_block() -> frozenset[str]:
    """The aliases whose connection is inside an ``atomic()`` block of the calling thread's."""
    return frozenset(wrapper.alias for wrapper in _initialized() if wrapper.in_atomic_block)


def _initialized() -> list[Any]:
    return [wrapper for wrapper in connections.all(initialized_only=True) if hasattr(wrapper, "pool_options")]


def pool_status() -> dict[str, dict[str, Any]]:
    """For each pool of this process, by its name ``user@host:port/database``, the numbers of this moment.

    ``aliases``, ``pool_class``, ``cap`` (``None``: no limit), ``size``, ``open``, ``idle``, ``out``, ``waiting``,
    ``pins``; all of it serialises as JSON.
    """
    notice_fork()
    return {pool.name: pool.status() for pool in tuple(_pools)}


def notice_fork() -> None:
    """Make up for a fork that ran none of Python's hooks: uWSGI forks its workers in C."""
    if os.getpid() != _pid:
        with _noticing:
            if os.getpid() != _pid:
                _after_fork_in_child()


def _before_fork() -> None:
    """Have no pool forked in the middle of a decision: a lock that another thread holds stays locked in the child."""
    house.before_fork()
    _lock.acquire()
    for pool in _pools:
        pool.hold_for_fork()
        _held_for_fork.append(pool)


def _after_fork_in_parent() -> None:
    for pool in _held_for_fork:
        pool.release_after_fork()
    _lock.release()
    _held_for_fork.clear()
    house.after_fork_in_parent()


def _after_fork_in_child() -> None:
    """A child starts without pools; its parent's connections are its parent's."""
    global _lock, _pid  # noqa: PLW0603
    # New locks rather than released ones: where no hook ran before the fork, any thread may have held them.
    _lock = threading.RLock()
    house.after_fork_in_child()
    inherited = tuple(_pools)
    _pools.clear()
    abandon(inherited)
    _held_for_fork.clear()
    _pid = os.getpid()  # last: other threads of the child wait for it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
