"""For tests under ``TestCase``: ``run_in_calling_thread``."""

from __future__ import annotations

from django.test.utils import TestContextDecorator

from .calling_thread import wanted


class run_in_calling_thread(TestContextDecorator):  # noqa: N801 (Django's own are named so: override_settings)
    """Have every ``PooledThreadPoolExecutor`` run its work in the thread that submits it, at once.

    A test under ``TestCase`` runs in a transaction, and what it has written no other thread can see. It decorates a test, a
    ``TestCase`` class or a function, or is a context manager. Results, exceptions, ``map()``, ``shutdown()`` and the
    initializer are as with threads; only nothing happens at the same time.
    """

    def enable(self) -> None:
        wanted.add(1)

    def disable(self) -> None:
        wanted.add(-1)
