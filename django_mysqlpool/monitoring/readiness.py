"""Can this process' pools serve? One thread asks at a time, however many probes come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from django.db import Error, connections

from django_mysqlpool import auto_close_db
from django_mysqlpool.mysqlpool.pool import fork
from django_mysqlpool.mysqlpool.pool.locks import RLock
from django_mysqlpool.mysqlpool.pool.numbers import statistics_of

#: Seconds in which the server must answer, and in which a pool that is full must have turned over.
ANSWER_WITHIN = 2.0
#: Seconds for which an answer holds for other probes.
HOLDS_FOR = 1.0
#: Seconds between two looks at a pool that is full.
LOOK_EVERY = 0.05


def pooled_aliases() -> list[str]:
    """The aliases of ``DATABASES`` that are pooled."""
    return [alias for alias in connections if getattr(connections[alias], "pool_options", None) is not None]


def why_pool_is_full(alias: str, seconds: float) -> str | None:
    """Tell why a checkout would not get a connection within so many seconds. It takes none, and no place in the queue.

    A pool with an idle connection, or with room for one, is not full. Nor is a busy one, if more connections came back
    meanwhile than threads were waiting: one that had joined the queue would have been served.

    :returns: ``None`` if it would get one, also if the alias is not pooled
    """
    pool = getattr(connections[alias], "pool", None)
    if pool is None:
        return None
    deadline = time.monotonic() + seconds
    first = now = statistics_of(pool)
    while _is_full(now) and now["checkins"] - first["checkins"] <= first["waiting"]:
        if time.monotonic() >= deadline:
            return f"{now['out']} of {now['cap']} connections are out, {now['opening']} being opened, {now['waiting']} wait"
        time.sleep(LOOK_EVERY)
        now = statistics_of(pool)
    return None


def _is_full(numbers: dict[str, Any]) -> bool:
    cap = numbers["cap"]
    return cap is not None and not numbers["idle"] and numbers["out"] + numbers["opening"] >= cap


@auto_close_db
def _ask(alias: str) -> None:
    """Have the server answer, on a connection of the pool."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


class Probe:
    """Asks an alias' server, in a thread of its own, since nothing else bounds the wait for a server that is silent.

    A thread that is still waiting is asked for what it finds: there is never another one beside it.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._lock = RLock()
        self._thread: threading.Thread | None = None
        #: Of the last probe, or the one under way; ``time.monotonic()``.
        self._began_at = self._ended_at = 0.0
        self._reason: str | None = None

    def start(self) -> None:
        """Ask, unless that is under way, or has just been done."""
        with self._lock:
            is_fresh = bool(self._ended_at) and time.monotonic() - self._ended_at < HOLDS_FOR
            if is_fresh or (self._thread is not None and self._thread.is_alive()):
                return
            self._began_at = time.monotonic()
            self._thread = threading.Thread(target=self._run, name="mysqlpool-readyz", daemon=True)
            self._thread.start()

    def answer(self, deadline: float) -> str | None:
        """Tell why the alias can't serve, or ``None`` if it can; wait for that until the deadline."""
        thread = self._thread
        assert thread is not None
        thread.join(max(deadline - time.monotonic(), 0))
        if thread.is_alive():
            return f"the server has not answered for {time.monotonic() - self._began_at:.1f} s"
        return self._reason

    def _run(self) -> None:
        try:
            self._reason = why_pool_is_full(self._alias, ANSWER_WITHIN / 2)
            if self._reason is None:
                _ask(self._alias)
        except Error as error:
            self._reason = str(error)
        except Exception as error:
            self._reason = type(error).__name__
        finally:
            self._ended_at = time.monotonic()


class Probes:
    """A probe for each pooled alias. A child of a fork begins anew."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def before_fork(self) -> None:
        """A probe's thread takes part in the fork as any that opens a connection does."""

    def after_fork_in_parent(self) -> None:
        """They go on."""

    def after_fork_in_child(self) -> None:
        self._by_alias: dict[str, Probe] = {}

    def ask(self, aliases: Iterable[str]) -> dict[str, str | None]:
        """Tell of each alias why it can't serve, or ``None`` if it can."""
        fork.notice_fork()
        deadline = time.monotonic() + ANSWER_WITHIN
        probes = {alias: self._by_alias.setdefault(alias, Probe(alias)) for alias in aliases}
        for probe in probes.values():
            probe.start()
        return {alias: probe.answer(deadline) for alias, probe in probes.items()}


probes = Probes()
fork.take_part(probes)
