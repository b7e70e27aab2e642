"""The drivers' connections, observed: what is asked of one directly, past the cursors, is noted in its session.

A connection stays the driver's own object, of the driver's own class. Some of its methods get others before them, in the
object itself: a class of ours would make every access to an attribute slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Driver, Method, Observer


class ObservedConnection:
    """What a connection tells of itself, methods in the place of its own, and its class of cursors.

    What each checkout and checkin asks of it is looked up once. mysqlclient's connections find their attributes in a way
    of their own, which takes Python many times as long.
    """

    __slots__ = ("_attributes", "_cursor_class", "_methods", "get_autocommit", "is_between_statements", "more_results")

    def __init__(self) -> None:
        self._attributes: dict[str, Any] = {}
        self._methods: dict[str, Method] = {}
        #: The driver's own.
        self.get_autocommit: Callable[[], bool] = _raise_closed
        #: Tells if the last answer was read to its end, as far as the driver knows.
        self.is_between_statements: Callable[[], bool] = _raise_closed
        #: Tells if another answer follows the last statement's (rows of an unbuffered cursor are none). ``None``: the
        #: driver can't tell without asking for it.
        self.more_results: Callable[[], bool] | None = None

    def observe(self, connection: Any, driver: Driver, observer: Observer) -> None:
        """Put methods that tell the observer in the place of a connection's own."""
        self._attributes = vars(connection)
        self.more_results = driver.more_results(connection)
        self.is_between_statements = driver.between_statements(connection, self.more_results)
        self.get_autocommit = connection.get_autocommit
        self.note_cursor_class()
        self._methods = driver.observed_methods(connection, observer)
        for name, method in self._methods.items():
            setattr(connection, name, method)

    def note_cursor_class(self) -> None:
        """Remember the class of cursors that are made without naming one, as a borrower finds it in the connection."""
        self._cursor_class = self._attributes.get("cursorclass")

    def has_its_cursor_class(self) -> bool:
        """True if that is still the class that the borrower found."""
        return self._attributes.get("cursorclass") is self._cursor_class

    def restore(self, connection: Any) -> None:
        """Give the connection its own methods back: the two would keep each other alive."""
        for name in self._methods:
            connection.__dict__.pop(name, None)  # (mysqlclient lets nobody delete an attribute)
        self._methods, self._attributes = {}, {}
        self.get_autocommit = self.is_between_statements = _raise_closed
        self.more_results = None


def _raise_closed() -> bool:
    raise ReferenceError("the connection is closed")
