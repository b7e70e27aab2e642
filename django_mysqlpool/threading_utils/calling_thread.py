"""Runs an executor's work in the thread that submits it, for tests whose transaction no other thread can see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any

from asgiref.sync import sync_to_async

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.pool.locks import RLock

from .work import must_not_wait

logger = logging.getLogger("concurrent.futures")


class _Wanted:
    """Counts the open blocks of ``run_in_calling_thread`` in this process."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.blocks = 0

    def add(self, number: int) -> None:
        with self.lock:
            self.blocks += number


wanted = _Wanted()


def is_calling_thread_wanted() -> bool:
    """Return ``True`` while a block of ``run_in_calling_thread`` is open in this process."""
    return wanted.blocks > 0


class CallingThread:
    """Stands in for an executor's threads: runs each callable at once, so that its future is done when it is returned."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._initializer = initializer
        self._initargs = initargs

    def submit(self, executor: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the work and return its future. In an event loop, the thread of the loop's synchronous code runs it."""
        if compat.is_broken(executor):
            raise BrokenThreadPool(compat.is_broken(executor))
        if compat.is_shut_down(executor):
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        call = partial(work, *args, **kwargs)
        if must_not_wait():
            task = asyncio.ensure_future(sync_to_async(self._run)(executor, future, call))
            future.add_done_callback(lambda _: task.done())  # keeps a reference to the task until then
        else:
            self._run(executor, future, call)
        return future

    def _run(self, executor: ThreadPoolExecutor, future: Future[Any], call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._initialize(executor)
        if compat.is_broken(executor):
            future.set_exception(BrokenThreadPool(compat.is_broken(executor)))
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _initialize(self, executor: ThreadPoolExecutor) -> None:
        initializer, self._initializer = self._initializer, None
        if initializer is not None:
            try:
                initializer(*self._initargs)
            except BaseException:
                logger.critical("Exception in initializer:", exc_info=True)
                compat.note_initializer_failed(executor)
