"""The pool classes that settings may name: SQLAlchemy's, the user's, and ours in the place of ``QueuePool``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy.pool
from sqlalchemy.pool import Pool, QueuePool

from .slot_pool import SlotPool

# Arguments of SQLAlchemy's classes that are not options, because this package sets them.
_GIVEN = {"self", "creator", "dialect"}


@cache
def by_name() -> dict[str, type[Pool]]:
    """The pool classes in the installed SQLAlchemy, those for asyncio included, by their names."""
    return {
        name: value
        for name, value in sorted(vars(sqlalchemy.pool).items())
        if isinstance(value, type) and issubclass(value, Pool) and value is not Pool
    }


def is_pool_class(value: object) -> bool:
    """True if a value is a pool class of SQLAlchemy's."""
    return isinstance(value, type) and issubclass(value, Pool)


def is_asyncio(pool_class: type[Pool]) -> bool:
    """True if a pool class is for asyncio drivers."""
    return getattr(pool_class, "_is_asyncio", False) is True


def is_default(pool_class: type[Pool]) -> bool:
    """True if ours takes its place."""
    return pool_class in (QueuePool, SlotPool)


def known_keys(pool_class: type[Pool] | None) -> frozenset[str]:
    """The arguments of a class' constructors; ``None``: of our own class."""
    keys: set[str] = set()
    for cls in (pool_class or SlotPool).__mro__:
        if "__init__" in vars(cls) and issubclass(cls, Pool):
            parameters = inspect.signature(cls.__init__).parameters.values()
            keys |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return frozenset(key for key in keys - _GIVEN if not key.startswith("_"))


def make(pool_class: type[Pool] | None, arguments: Mapping[str, Any]) -> None:
    """Have a class check its arguments: to make a pool opens no connection.

    :raises Exception: whatever the class raises
    """
    (pool_class or SlotPool)(lambda: None, **arguments)  # type: ignore[arg-type]
