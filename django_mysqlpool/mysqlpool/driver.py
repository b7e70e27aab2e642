"""What differs between the drivers that can stand behind Django's MySQL backend; the rest of the core knows neither.

mysqlclient is Django's own choice. PyMySQL takes its place where ``pymysql.install_as_MySQLdb()`` is called before Django
loads its backend. It is written in Python, so gevent can make its waiting cooperative. Some of what a pool needs it has
only under private names: they are all in here, and missed when the first connection is opened, not later.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .sockets import is_patched_by_gevent, is_readable

logger = logging.getLogger("django_mysqlpool")

Rows = Sequence[Sequence[Any]]


class Driver(ABC):
    """What the core asks of a driver beyond what both have in common. Errors are the driver's own."""

    #: What people call it.
    name: str
    #: Whether gevent can have other greenlets run while it waits.
    is_cooperative: bool
    #: What stands between a watched cursor and the driver's own.
    cursor_mixins: tuple[type, ...] = ()

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @cached_property
    def cursor_class(self) -> type:
        """The cursor that the driver makes where nobody asks for another."""
        return import_module(f"{self._module.__name__}.cursors").Cursor  # type: ignore[no-any-return]

    @abstractmethod
    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        """A new connection, or an error after about ``connect_timeout`` seconds."""

    @abstractmethod
    def close(self, connection: Any) -> None:
        """Say goodbye; what nobody has read is lost."""

    @abstractmethod
    def descriptor(self, connection: Any) -> int:
        """Its socket's; an error where the connection is closed."""

    @abstractmethod
    def is_between_statements(self, connection: Any) -> bool:
        """Whether the last answer was read to its end, as far as is known without asking the server."""

    @abstractmethod
    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        """What tells, each time, whether another answer follows the last one that was read; ``None``: nothing does."""

    @abstractmethod
    def has_unread_rows(self, result: Any) -> bool:
        """Whether ``result``, which a cursor keeps, has rows that are still with the server."""

    @abstractmethod
    def ask(self, connection: Any, query: bytes, patience: float) -> Rows | None:
        """The rows that the server answers; ``None`` where it does not begin to within ``patience`` seconds."""

    @abstractmethod
    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        """Make the session what it was when the driver had just opened it with ``params``; whether it is that."""


class Mysqlclient(Driver):
    """mysqlclient: MySQL's or MariaDB's client library in C."""

    name = "mysqlclient"
    is_cooperative = False
    _has_warned = False

    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        if not self._has_warned and is_patched_by_gevent():
            self._has_warned = True
            logger.warning("Under gevent, a query by mysqlclient stops every greenlet until it is answered; use PyMySQL.")
        return connect(params)

    def close(self, connection: Any) -> None:
        connection.close()

    def descriptor(self, connection: Any) -> int:
        return connection.fileno()  # type: ignore[no-any-return]

    def is_between_statements(self, connection: Any) -> bool:
        # "-1 indicates (...) that, for a SELECT query, mysql_affected_rows() was called prior to calling
        # mysql_store_result()", says MySQL's C API: with a count, and no other answer to follow, all has been read. To ask
        # for these two does not give up the GIL, which next_result() does, and then has to wait for.
        more_results = self.more_results(connection)
        if more_results is not None and connection.affected_rows() != -1 and not more_results():
            return True
        return connection.next_result() == -1  # type: ignore[no-any-return]

    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        return getattr(connection, "more_results", None)  # since 2.3

    def has_unread_rows(self, result: Any) -> bool:
        return True  # a cursor that has read them all keeps none

    def ask(self, connection: Any, query: bytes, patience: float) -> Rows | None:
        # ping() and query() wait for as long as read_timeout says, by default for ever.
        connection.send_query(query)
        if not is_readable(connection.fileno(), patience):
            return None
        connection.read_query_result()
        result = connection.store_result()
        return [] if result is None else [tuple(map(_text, row)) for row in result.fetch_row(0)]

    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        if not _say_all(params):
            return False
        database = (params["database"],) if params.get("database") else ()
        connection.change_user(params.get("user") or "", params.get("password") or "", *database)
        # In the driver's order; ``change_user`` forgets all three, and MySQL the collation.
        if params.get("init_command"):
            with connection.cursor() as cursor:
                cursor.execute(params["init_command"])
        connection.set_character_set(params.get("charset") or connection.character_set_name(), params.get("collation", ""))
        if params.get("sql_mode"):
            connection.set_sql_mode(params["sql_mode"])
        return True


class _PyMySQLCursor:
    """PyMySQL's cursors call their own public methods; a watched cursor must know those calls from its user's."""

    _is_inside = False

    def execute(self, query: Any, args: Any = None) -> Any:
        with self._inside():
            return super().execute(query, args)  # type: ignore[misc]

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        with self._inside():
            return super().callproc(procname, args)  # type: ignore[misc]

    def close(self) -> None:
        with self._inside():
            super().close()  # type: ignore[misc]

    @contextmanager
    def _inside(self) -> Iterator[None]:
        before, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = before

    def read_next(self) -> Any:
        """The next row of an unbuffered cursor, which the driver would read past the end of the lease."""
        self.leave_what_is_over()  # type: ignore[attr-defined]
        self._get_db()  # type: ignore[attr-defined]
        return super().read_next()  # type: ignore[misc]

    def __del__(self) -> None:
        # The driver's would read the rest, in whatever thread and whatever that is doing. The checkin sees to it.
        pass


class PyMySQL(Driver):
    """PyMySQL: the protocol in Python, over Python's sockets."""

    name = "PyMySQL"
    is_cooperative = True
    cursor_mixins = (_PyMySQLCursor,)
    #: What is used of its connections that has no public name.
    PRIVATE = ("_sock", "_result", "_read_timeout", "_write_timeout", "_execute_command", "_read_ok_packet")
    #: COM_RESET_CONNECTION of the protocol, for which the driver has no method.
    RESET_CONNECTION = 0x1F
    #: Seconds for ``connect_timeout`` where it is not given, as the driver has it.
    CONNECT_TIMEOUT = 10

    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        # The driver limits only the connecting of the socket by connect_timeout; a server may fall silent after that.
        limit = params.get("connect_timeout") or self.CONNECT_TIMEOUT
        connection = connect({**params, "read_timeout": limit, "write_timeout": limit})
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        connection._read_timeout = params.get("read_timeout") or None
        connection._write_timeout = params.get("write_timeout") or None
        return connection

    def _check(self, connection: Any) -> None:
        """Miss the private names now, and not in the middle of something."""
        missing = [name for name in self.PRIVATE if not hasattr(connection, name)]
        if missing:
            version = getattr(self._module, "VERSION_STRING", "")
            raise ImproperlyConfigured(
                f"django_mysqlpool does not know PyMySQL {version}: its connections have no {', '.join(missing)}."
            )

    def close(self, connection: Any) -> None:
        result = connection._result
        if result is not None:
            # It would read its rest, from a socket that is closed by then, when it is deallocated.
            result.unbuffered_active, result.connection = False, None
        if connection.open:
            connection.close()

    def descriptor(self, connection: Any) -> int:
        return connection._sock.fileno()  # type: ignore[no-any-return]

    def is_between_statements(self, connection: Any) -> bool:
        # The driver closes a connection that is interrupted while it reads, by gevent's Timeout for instance.
        result = connection._result
        return connection.open and not (result is not None and (result.unbuffered_active or result.has_next))

    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        return lambda: connection._result is not None and bool(connection._result.has_next)

    def has_unread_rows(self, result: Any) -> bool:
        return bool(result.unbuffered_active)

    def ask(self, connection: Any, query: bytes, patience: float) -> Rows | None:
        with self._limited(connection, max(patience, 0.001)), connection.cursor(self.cursor_class) as cursor:
            cursor.execute(query)
            return cursor.fetchall()  # type: ignore[no-any-return]

    @contextmanager
    def _limited(self, connection: Any, seconds: float) -> Iterator[None]:
        before = connection._read_timeout, connection._write_timeout
        connection._read_timeout = connection._write_timeout = seconds
        try:
            yield
        finally:
            connection._read_timeout, connection._write_timeout = before

    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        if not params.get("database") or not _say_all(params):
            return False
        connection._execute_command(self.RESET_CONNECTION, b"")
        connection._read_ok_packet()
        connection.select_db(params["database"])  # which the reset has left as it was
        # In the driver's order.
        connection.set_character_set(params.get("charset") or connection.charset, params.get("collation"))
        with connection.cursor(self.cursor_class) as cursor:
            if params.get("sql_mode"):
                cursor.execute("SET sql_mode=%s", (params["sql_mode"],))
            if params.get("init_command"):
                cursor.execute(params["init_command"])
        return True


def driver_for(module: ModuleType) -> Driver:
    """The driver that ``module``, Django's ``Database``, is."""
    return PyMySQL(module) if module.__name__ == "pymysql" else Mysqlclient(module)


def _say_all(params: Mapping[str, Any]) -> bool:
    """Whether all that a new connection would be told stands in ``params``, so that a reset can tell it again."""
    return "read_default_file" not in params and "read_default_group" not in params


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
