"""The differences of mysqlclient and PyMySQL, and the sockets below their connections."""

from __future__ import annotations

from types import ModuleType

from .base import Driver
from .mysqlclient import Mysqlclient
from .pymysql import PyMySQL

#: The classes from which unbuffered cursors are derived: mysqlclient's, PyMySQL's.
_UNBUFFERED = {"CursorUseResultMixIn", "SSCursor"}


def driver_for(module: ModuleType) -> Driver:
    """The driver that ``module``, Django's ``Database``, is."""
    return PyMySQL(module) if module.__name__ == "pymysql" else Mysqlclient(module)


def is_unbuffered(cursor_class: type) -> bool:
    """True if a cursor of either driver, or of a class derived from one, reads its rows as they are fetched."""
    return not _UNBUFFERED.isdisjoint(base.__name__ for base in cursor_class.__mro__)
