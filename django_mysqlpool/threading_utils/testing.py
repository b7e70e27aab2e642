"""``run_in_calling_thread``, for tests under ``TestCase``."""

from __future__ import annotations

from django.test.utils import TestContextDecorator

from .calling_thread import wanted


class run_in_calling_thread(TestContextDecorator):  # noqa: N801 (Django's own are named so: override_settings)
    """Makes every ``PooledThreadPoolExecutor`` of the process run its work at once, in the thread that submits it.

    A test under ``TestCase`` runs in a transaction, so other threads can't see what it has written. Use this as a
    decorator of a ``TestCase`` class or a test function, or as a context manager: ``with run_in_calling_thread():``. It
    has no parameters.

    Results, exceptions, ``map()``, ``shutdown()`` and the initializer work as with threads, but nothing runs at the same
    time. Work that waits for work which is submitted later waits for ever.
    """

    def enable(self) -> None:
        wanted.add(1)

    def disable(self) -> None:
        wanted.add(-1)
