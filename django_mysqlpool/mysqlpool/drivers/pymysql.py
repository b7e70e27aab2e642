"""PyMySQL: the protocol in Python, over Python's sockets, whose waiting gevent can make cooperative.

It takes mysqlclient's place if ``pymysql.install_as_MySQLdb()`` is called before Django loads its backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.masking import ConnectionParams
from django_mysqlpool.mysqlpool.statements import SessionEffect

from .base import Driver, Method, Observer, Rows, noting_methods, say_all

#: Methods that change the driver's own idea of the session too, which no reset restores.
_EFFECTS = {
    "connect": SessionEffect.UNSALVAGEABLE,  # a new login on a new socket, for ping(reconnect=True) too
    "set_character_set": SessionEffect.UNSALVAGEABLE,
}
#: Of the protocol.
_COM_QUERY, _COM_PING, _COM_RESET_CONNECTION = 0x03, 0x0E, 0x1F


class _PyMySQLCursor:
    """PyMySQL's cursors call their own public methods; a watched cursor must know those calls from its user's."""

    _is_inside = False

    def execute(self, query: Any, args: Any = None) -> Any:
        return self._call_inside(super().execute, query, args)  # type: ignore[misc]

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        return self._call_inside(super().callproc, procname, args)  # type: ignore[misc]

    def close(self) -> None:
        connection = self.connection  # type: ignore[has-type]
        if connection is not None and not connection.open:
            # The driver would read the rest all the same, and raise an AttributeError in the place of what ended it.
            self.connection = None
            return
        self._call_inside(super().close)  # type: ignore[misc]

    def _call_inside(self, method: Callable[..., Any], *args: Any) -> Any:
        before, self._is_inside = self._is_inside, True
        try:
            return method(*args)
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
    reset_keeps_role = True
    cursor_mixins = (_PyMySQLCursor,)
    #: Seconds for ``connect_timeout`` if it is not given, as the driver has it.
    CONNECT_TIMEOUT = 10

    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        # The driver limits only the connecting of the socket by connect_timeout; a server may fall silent after that.
        limit = params.get("connect_timeout") or self.CONNECT_TIMEOUT
        connection = connect(ConnectionParams(params, read_timeout=limit, write_timeout=limit))
        try:
            compat.check_pymysql(self._module, connection)
        except BaseException:
            connection.close()
            raise
        compat.set_pymysql_timeouts(connection, params.get("read_timeout") or None, params.get("write_timeout") or None)
        return connection

    def close(self, connection: Any) -> None:
        result = compat.pymysql_result(connection)
        if result is not None:
            # It would read its rest, from a socket that is closed by then, when it is deallocated.
            result.unbuffered_active, result.connection = False, None
        if connection.open:
            connection.close()

    def closed_error(self) -> Exception:
        return self._module.InterfaceError(0, "")  # type: ignore[no-any-return]

    def descriptor(self, connection: Any) -> int:
        return compat.pymysql_descriptor(connection)

    def observed_methods(self, connection: Any, observer: Observer) -> dict[str, Method]:
        return _observed_methods(connection, observer)

    def between_statements(self, connection: Any, more_results: object) -> Callable[[], bool]:
        def is_between_statements() -> bool:
            # The driver closes a connection that is interrupted while it reads, by gevent's Timeout for instance.
            result = compat.pymysql_result(connection)
            return connection.open and not (result is not None and (result.unbuffered_active or result.has_next))

        return is_between_statements

    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        return lambda: (result := compat.pymysql_result(connection)) is not None and bool(result.has_next)

    def has_unread_rows(self, result: Any) -> bool:
        return bool(result.unbuffered_active)

    def ask(self, connection: Any, query: bytes, timeout: float) -> Rows | None:
        before, seconds = compat.pymysql_timeouts(connection), max(timeout, 0.001)
        try:
            compat.set_pymysql_timeouts(connection, seconds, seconds)
            with connection.cursor(self.cursor_class) as cursor:
                cursor.execute(query)
                return cursor.fetchall()  # type: ignore[no-any-return]
        finally:
            compat.set_pymysql_timeouts(connection, *before)

    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        database = params.get("database") or params.get("db")
        if not database or not say_all(params):
            return False
        compat.pymysql_sender(connection)(_COM_RESET_CONNECTION, b"")
        compat.pymysql_read_ok(connection)
        connection.select_db(database)  # which the reset has left as it was
        # In the driver's order.
        connection.set_character_set(params.get("charset") or connection.charset, params.get("collation"))
        with connection.cursor(self.cursor_class) as cursor:
            if params.get("sql_mode"):
                cursor.execute("SET sql_mode=%s", (params["sql_mode"],))
            if params.get("init_command"):
                cursor.execute(params["init_command"])
        return True


def _observed_methods(connection: Any, observer: Observer) -> dict[str, Method]:
    """Methods to put in the place of a connection's. All that is sent passes one method."""
    send, set_autocommit = compat.pymysql_sender(connection), connection.autocommit

    def execute_command(command: int, sql: Any) -> Any:
        if not observer.is_sending:
            if command == _COM_QUERY:
                observer.note_sent(sql)
            elif command != _COM_PING:
                observer.note_call(SessionEffect.DIRTY, "command")
        return send(command, sql)

    def autocommit(value: Any) -> Any:
        # The driver knows it without asking, and so does the checkin.
        before, observer.is_sending = observer.is_sending, True
        try:
            return set_autocommit(value)
        finally:
            observer.is_sending = before

    sending: dict[str, Method] = {compat.PYMYSQL_SENDER: execute_command, "autocommit": autocommit}
    return sending | noting_methods(connection, observer, _EFFECTS)
