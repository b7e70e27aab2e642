"""mysqlclient, Django's own choice: MySQL's or MariaDB's client library in C."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.statements import SessionEffect

from .base import Driver, Method, Observer, Rows, noting_methods, say_all
from .sockets import is_patched_by_gevent, is_readable

#: Methods that change the driver's own idea of the session too, which no reset restores; and those that a reset restores.
_EFFECTS = {
    "change_user": SessionEffect.UNSALVAGEABLE,
    "select_db": SessionEffect.DIRTY,
    "set_character_set": SessionEffect.UNSALVAGEABLE,
    "set_server_option": SessionEffect.UNSALVAGEABLE,
}


class Mysqlclient(Driver):
    """mysqlclient: MySQL's or MariaDB's client library in C."""

    name = "mysqlclient"
    is_cooperative = False
    _has_warned = False

    def open(self, connect: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
        if not self._has_warned and is_patched_by_gevent():
            self._has_warned = True
            say(
                logging.WARNING,
                "Under gevent, a query by mysqlclient stops every greenlet until it is answered; use PyMySQL.",
            )
        return connect(params)

    def close(self, connection: Any) -> None:
        connection.close()

    def closed_error(self) -> Exception:
        return self._module.OperationalError(2006, "")  # type: ignore[no-any-return]

    def descriptor(self, connection: Any) -> int:
        return connection.fileno()  # type: ignore[no-any-return]

    def observed_methods(self, connection: Any, observer: Observer) -> dict[str, Method]:
        return _observed_methods(connection, observer)

    def between_statements(self, connection: Any, more_results: Callable[[], bool] | None) -> Callable[[], bool]:
        affected_rows, next_result = connection.affected_rows, connection.next_result

        def is_between_statements() -> bool:
            # "-1 indicates (...) that, for a SELECT query, mysql_affected_rows() was called prior to calling
            # mysql_store_result()", says MySQL's C API: with a count, and no other answer to follow, all has been read. To
            # ask for these two does not give up the GIL, which next_result() does, and then has to wait for.
            if more_results is not None and affected_rows() != -1 and not more_results():
                return True
            return next_result() == -1  # type: ignore[no-any-return]

        return is_between_statements

    def more_results(self, connection: Any) -> Callable[[], bool] | None:
        return getattr(connection, "more_results", None)  # since 2.3

    def has_unread_rows(self, result: Any) -> bool:
        return True  # a cursor that has read them all keeps none

    def ask(self, connection: Any, query: bytes, timeout: float) -> Rows | None:
        # ping() and query() wait for as long as read_timeout says, by default for ever.
        connection.send_query(query)
        if not is_readable(connection.fileno(), timeout):
            return None
        connection.read_query_result()
        result = connection.store_result()
        return [] if result is None else [tuple(map(_text, row)) for row in result.fetch_row(0)]

    def reset(self, connection: Any, params: Mapping[str, Any]) -> bool:
        if not say_all(params):
            return False
        # The driver's older names go before the others.
        database, password = params.get("db", params.get("database")), params.get("passwd", params.get("password"))
        connection.change_user(params.get("user") or "", password or "", *((database,) if database else ()))
        # In the driver's order; ``change_user`` forgets all three, and MySQL the collation.
        if params.get("init_command"):
            with connection.cursor() as cursor:
                cursor.execute(params["init_command"])
        connection.set_character_set(params.get("charset") or connection.character_set_name(), params.get("collation", ""))
        if params.get("sql_mode"):
            connection.set_sql_mode(params["sql_mode"])
        return True


def _observed_methods(connection: Any, observer: Observer) -> dict[str, Method]:
    """Methods to put in the place of a connection's. Each cursor's statements pass ``query()``."""
    own_query, own_send_query, own_ping = connection.query, connection.send_query, connection.ping

    def query(query: Any) -> Any:
        if not observer.is_sending:
            observer.note_sent(query)
        return own_query(query)

    def send_query(query: Any) -> Any:
        if not observer.is_sending:  # its answer may never be read, and the driver does not know of it
            observer.note_call(SessionEffect.UNSALVAGEABLE, "send_query")
        return own_send_query(query)

    def ping(*reconnect: Any) -> Any:
        if any(reconnect):  # the client library reconnects in silence from now on
            observer.note_call(SessionEffect.UNSALVAGEABLE, "ping")
        return own_ping(*reconnect)

    sending: dict[str, Method] = {"query": query, "send_query": send_query, "ping": ping}
    return sending | noting_methods(connection, observer, _EFFECTS)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
