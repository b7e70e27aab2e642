"""The interface of a driver; the rest of the core knows neither mysqlclient nor PyMySQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from django_mysqlpool.mysqlpool.statements import SessionEffect

Method = Callable[..., Any]
Rows = Sequence[Sequence[Any]]


class Observer(Protocol):
    """Is told what is sent: a session."""

    #: The driver is sending something that is known already.
    is_sending: bool

    def note_sent(self, statement: object) -> None: ...
    def note_call(self, effect: SessionEffect, name: str | None) -> None: ...


class Driver(ABC):
    """The interface of a driver, beyond what both have in common. Errors are the driver's own."""

    #: The name that people know it by.
    name: str
    #: True if gevent can have other greenlets run while it waits.
    is_cooperative: bool
    #: Classes between a watched cursor and the driver's own.
    cursor_mixins: tuple[type, ...] = ()
    #: A reset leaves MySQL's role as it was.
    reset_keeps_role = False

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        #: The class of all errors that are the driver's own.
        self.error_class: type[Exception] = module.Error
        #: The one of them that tells of servers.
        self.operational_error: type[Exception] = module.OperationalError

    @cached_property
    def cursor_class(self) -> type:
        """The cursor that the driver makes if nobody asks for another."""
        return import_module(f"{self._module.__name__}.cursors").Cursor  # type: ignore[no-any-return]

    @abstractmethod
    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        """A new connection, or an error after about ``connect_timeout`` seconds."""

    @abstractmethod
    def close(self, connection: Any) -> None:
        """Say goodbye; what nobody has read is lost."""

    @abstractmethod
    def closed_error(self) -> Exception:
        """The exception that a statement on a closed connection raises."""

    @abstractmethod
    def descriptor(self, connection: Any) -> int:
        """Its socket's; an error if the connection is closed."""

    @abstractmethod
    def observed_methods(self, connection: Any, observer: Observer) -> dict[str, Method]:
        """Methods to put in the place of a connection's own, so that ``observer`` hears of what passes no cursor."""

    @abstractmethod
    def between_statements(self, connection: Any, more_results: Callable[[], bool] | None) -> Callable[[], bool]:
        """A function that tells, each time, if the last answer was read to its end, as far as it is known here.

        :param more_results: what ``more_results()`` has returned for this connection
        """

    @abstractmethod
    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        """A function that tells, each time, if another answer follows the last one that was read, if there is one."""

    @abstractmethod
    def has_unread_rows(self, result: Any) -> bool:
        """True if ``result``, which a cursor keeps, has rows that are still with the server."""

    @abstractmethod
    def ask(self, connection: Any, query: bytes, timeout: float) -> Rows | None:
        """The rows that the server answers; ``None`` if it does not begin to within ``timeout`` seconds."""

    @abstractmethod
    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        """Make the session what it was when the driver had just opened it with ``params``; whether it is that."""


def noting_methods(connection: Any, observer: Observer, effects: Mapping[str, SessionEffect]) -> dict[str, Method]:
    """Methods that tell the observer their effect, and then do what they did."""

    def noted(name: str, own: Method, effect: SessionEffect) -> Method:
        def method(*args: Any, **kwargs: Any) -> Any:
            observer.note_call(effect, name)
            return own(*args, **kwargs)

        return method

    return {name: noted(name, getattr(connection, name), effect) for name, effect in effects.items()}


def say_all(params: Mapping[str, Any]) -> bool:
    """True if all that a new connection would be told stands in ``params``, so that a reset can tell it again."""
    return "read_default_file" not in params and "read_default_group" not in params
