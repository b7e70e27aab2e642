"""``PooledThreadPoolExecutor``, whose threads return their connections after each callable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.db import connections

from .calling_thread import CallingThread, is_calling_thread_wanted
from .decorator import aliases, is_coroutine_function
from .work import name_of, run_as_work

P = ParamSpec("P")
R = TypeVar("R")


class PooledThreadPoolExecutor(ThreadPoolExecutor):
    """A :class:`concurrent.futures.ThreadPoolExecutor` that runs each callable, and its initializer, in ``auto_close_db``.

    A connection is back in its pool before the result can be seen. More workers than the cap cause a ``RuntimeWarning``.

    :param max_workers: the greatest number of threads, 1 or more. Default: the smallest cap of the pools of ``using``, so
        that no worker waits for another's connection; if no pool has a cap, Python's own default.
    :param thread_name_prefix: as in Python's class
    :param initializer: a callable that each thread runs first, in ``auto_close_db``; default none
    :param initargs: a tuple of its arguments
    :param using: the database aliases, one or a list, whose pools count for ``max_workers`` and the warning; default: all
        in ``DATABASES``. Connections of all aliases are returned in any case.
    :param propagate_context: run each callable with a copy of the submitter's context variables (default), or not
    :raises TypeError: if ``using`` is neither an alias nor a list of aliases, or ``initializer`` is a coroutine function
    :raises ValueError: if ``max_workers`` is not positive (Python's own error)
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have an alias of ``using``
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        using: str | Iterable[str] | None = None,
        propagate_context: bool = True,
    ) -> None:
        cap, alias = _smallest_cap(aliases(using))
        if cap is not None and max_workers is not None and max_workers > cap:
            warnings.warn(_too_many(max_workers, cap, alias), RuntimeWarning, stacklevel=2)
        if callable(initializer):
            initializer = partial(_release_after, _must_be_plain(initializer))
        super().__init__(cap if max_workers is None else max_workers, thread_name_prefix, initializer, initargs)
        self._propagates_context = propagate_context
        self._calling_thread = CallingThread(initializer, initargs)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Schedule a callable; ``map()`` calls this method too.

        :param fn: the callable, followed by its arguments
        :returns: a future. Its result is set after the connections have returned.
        :raises TypeError: if ``fn`` is a coroutine function, because a thread would create the coroutine and not run it
        :raises RuntimeError: after ``shutdown()``, as Python's class
        """
        work: Callable[..., Any] = partial(_release_after, _must_be_plain(fn))
        if self._propagates_context:
            work = partial(copy_context().run, work)
        if is_calling_thread_wanted():
            return self._calling_thread.submit(self, work, *args, **kwargs)
        return super().submit(work, *args, **kwargs)


def _release_after(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    return run_as_work(partial(name_of, fn), None, fn, *args, **kwargs)


def _must_be_plain(fn: Callable[P, R]) -> Callable[P, R]:
    if is_coroutine_function(fn):
        raise TypeError(
            f"{fn!r} is a coroutine function: a thread would make its coroutine and not run it. "
            "Await it in your event loop, or submit asgiref.sync.async_to_sync(...) of it."
        )
    return fn


def _smallest_cap(using: Iterable[str] | None) -> tuple[int | None, str]:
    """Return the smallest cap of the pools of these aliases (``None``: all), and its alias. ``None``: no pool has a cap."""
    smallest: int | None = None
    whose = ""
    for alias in connections.settings if using is None else sorted(using):
        wrapper: Any = connections[alias]
        # The wrapper's class is not imported here, because that would import the driver before the settings can choose one.
        pool = wrapper.pool if getattr(wrapper, "pool_options", None) is not None else None
        if pool is not None and pool.cap is not None and (smallest is None or pool.cap < smallest):
            smallest, whose = pool.cap, alias
    return smallest, whose


def _too_many(max_workers: int, cap: int, alias: str) -> str:
    return (
        f"PooledThreadPoolExecutor has max_workers={max_workers}, but the pool of alias '{alias}' lends at most {cap} "
        f"connections at a time: when more than {cap} workers want one, the others wait, and get PoolTimeout where "
        f"none comes free within the pool's timeout. Leave max_workers out to have {cap}."
    )
