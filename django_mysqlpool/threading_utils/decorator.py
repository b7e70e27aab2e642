"""``auto_close_db``: a function gives its thread's connections back when it ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from django_mysqlpool.mysqlpool.registry import give_back, in_atomic_block

P = ParamSpec("P")
R = TypeVar("R")


def auto_close_db(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its thread's pooled connections go back to their pools when it ends.

    They go back however the call ends; what it left open in a transaction is rolled back. Inside an ``atomic()`` block
    of the caller's, that block's connection stays.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        of_the_caller = in_atomic_block()
        try:
            return function(*args, **kwargs)
        finally:
            give_back(keep=of_the_caller)

    return wrapper
