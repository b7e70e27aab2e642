"""``PooledThreadPoolExecutor``: threads that give their connections back after each piece of work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .decorator import auto_close_db

P = ParamSpec("P")
R = TypeVar("R")


class PooledThreadPoolExecutor(ThreadPoolExecutor):
    """A ``concurrent.futures.ThreadPoolExecutor`` that runs each callable in ``auto_close_db``."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Schedule ``fn``; ``map()`` comes through here too."""
        return super().submit(auto_close_db(fn), *args, **kwargs)
