"""The pools of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django_mysqlpool.mysqlpool.log import say

from . import fork
from .fork import discard_inherited
from .locks import RLock, acquire_if_free
from .maintenance import maintenance

if TYPE_CHECKING:
    from .pool import Pool


class Registry:
    """The pools of this process, and what becomes of them when it forks."""

    def __init__(self) -> None:
        self._pools: list[Pool] = []
        self._lock = RLock()
        #: During a fork: the pools that wait for it.
        self._held_for_fork: list[Pool] = []

    def pools(self) -> tuple[Pool, ...]:
        return tuple(self._pools)

    def find(self, identity: Mapping[str, Any]) -> Pool | None:
        """The pool with this identity, if there is one."""
        # A process has a handful of pools; comparing them copes with values that can't be hashed.
        for pool in self._pools:
            if pool.identity == identity and not pool.is_abandoned:
                return pool
        return None

    def find_or_make(self, identity: Mapping[str, Any], base_name: str, make: Callable[[str], Pool]) -> Pool:
        """The pool with this identity.

        :param base_name: what to call a new one; a number is added if another has that name
        :param make: makes a new one of its name
        """
        pool = self.find(identity)
        if pool is None:
            with self._lock:
                pool = self.find(identity)
                if pool is None:
                    pool = make(self._free_name(base_name))
                    self._pools.append(pool)
        return pool

    def _free_name(self, base: str) -> str:
        taken = {pool.name for pool in self._pools}
        names = (base if n == 1 else f"{base}#{n}" for n in range(1, len(taken) + 2))
        return next(name for name in names if name not in taken)

    def forget_unwanted(self) -> None:
        """Forget the pools that no alias leads to and that have no connection; nothing is waited for."""
        unwanted = [pool for pool in self.pools() if not pool.sessions and not pool.aliases.is_wanted()]
        held: list[threading.RLock] = []
        try:
            if unwanted and acquire_if_free(self._lock, held) and not self._held_for_fork:
                self._forget(unwanted)
        finally:
            for lock in held:
                lock.release()

    def _forget(self, unwanted: list[Pool]) -> None:
        for pool in unwanted:
            if pool in self._pools and _abandon_if_empty(pool):
                self._pools.remove(pool)
                maintenance.forget(pool)

    # No pool is forked in the middle of a decision: a lock that another thread holds stays locked in the child.

    def before_fork(self) -> None:
        self._lock.acquire()
        deadline = time.monotonic() + fork.MAX_WAIT
        self._held_for_fork.extend(self._pools)
        barriers = {pool.name: pool.connector.barrier for pool in self._held_for_fork}
        for barrier in barriers.values():
            barrier.raise_for_fork()
        for barrier in barriers.values():
            barrier.wait_for_end(deadline)
        for name, barrier in barriers.items():
            if number := barrier.hold():
                say(
                    logging.WARNING,
                    "Pool %s: the process forked while connections were being opened or closed (%d), which took longer "
                    "than %d s. The child keeps their sockets open.",
                    name,
                    number,
                    fork.MAX_WAIT,
                )

    def after_fork_in_parent(self) -> None:
        try:
            self._lower_barriers()
        except BaseException:  # an interrupt
            self._lower_barriers()
            raise
        finally:
            self._held_for_fork.clear()
            self._lock.release()

    def _lower_barriers(self) -> None:
        for pool in self._held_for_fork:
            pool.connector.barrier.lower_after_fork()

    def after_fork_in_child(self) -> None:
        """A child starts without pools; its parent's connections are its parent's."""
        # New locks rather than released ones: if no hook ran before the fork, any thread may have held them.
        self._lock = RLock()
        inherited = self.pools()
        self._pools.clear()
        self._held_for_fork.clear()
        for pool in inherited:
            discard_inherited(pool.sessions.copy())
            for session in pool.sessions.copy():
                lease = session.lease
                if lease is not None:
                    lease.detach_after_fork()
            pool.abandon()


def _abandon_if_empty(pool: Pool) -> bool:
    """Abandon a pool, if there is no connection in it, and nobody waits for one; nothing is waited for."""
    held: list[threading.RLock] = []
    try:
        if not acquire_if_free(pool.source.lock, held):
            return False
        is_empty = not (pool.sessions or pool.connector.barrier.is_busy or pool.source.waiting())
        if is_empty:
            pool.is_abandoned = pool.connector.is_stopped = True
        return is_empty
    finally:
        for lock in held:
            lock.release()


registry = Registry()
fork.take_part(registry)
