"""``python -m devtools.functions``: the functions of a server, and those that the package's table does not have.

The names come from the server itself (its keywords, its functions where it lists them, its help) and from the table, which
has the other server's too. Whether a name is a function is asked of the parser, by preparing calls that are never executed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import MySQLdb

from devtools.server import server_from_environment
from django_mysqlpool.mysqlpool.functions import calls_of, known_names

DATABASE = "mysqlpool_functions"
#: The forms that calls have; a wrong number of arguments tells a function too.
FORMS = """
    {}(1) | {}(1, 1) | {}(1, 1, 1) | {}('a', 'a', 'a', 'a') | {}() | {}(*) | {}(a) | {}(a, 1)
    {}(1 AS CHAR) | {}(a, 'b' AS CHAR) | {}('a', 'b', 'c' AS CHAR) | {}('a', '$' RETURNING CHAR) | {}('a': a)
    {}('a' USING utf8mb4) | {}('a' IN 'b') | {}(DAY FROM a) | {}(a, INTERVAL 1 DAY) | {}(DAY, 1, a) | {}(DATE, 'a')
    {}() OVER () | {}(a) OVER () | {}(a, 1) OVER () | {}(0.5) WITHIN GROUP (ORDER BY a) OVER () | {}(a ORDER BY a)
    {}(a) AGAINST ('b')
"""
SYNTAX, NO_SUCH_FUNCTION, NO_SUCH_FUNCTION_WITH_SPACE = 1064, 1305, 1630
UNKNOWN = {NO_SUCH_FUNCTION, NO_SUCH_FUNCTION_WITH_SPACE}
LISTS = (
    "SELECT word FROM information_schema.keywords",
    "SELECT function FROM information_schema.sql_functions",
    "SELECT name FROM mysql.help_topic",
)


class Parser:
    """A server that is asked what it makes of a name before a parenthesis."""

    def __init__(self, connection: Any) -> None:
        self._cursor = connection.cursor()
        self._cursor.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
        self._cursor.execute(f"USE {DATABASE}")

    def close(self) -> None:
        """Leave nothing."""
        self._cursor.execute(f"DROP DATABASE {DATABASE}")
        self._cursor.close()

    def names(self, more: Iterable[str] = ()) -> set[str]:
        """What may be a function: the server's own lists, as far as it has them, and ``more``."""
        found = set(more)
        for query in LISTS:
            with suppress(MySQLdb.Error):
                self._cursor.execute(query)
                found |= {row[0].lower().partition(" ")[0] for row in self._cursor.fetchall()}
        return {name for name in found if re.fullmatch(r"[a-z_][a-z0-9_]*", name)}

    def is_never_stored(self, name: str, gap: str = "") -> bool:
        """Whether ``name`` before a parenthesis can't be a stored or a loadable function, which would not exist here."""
        return UNKNOWN.isdisjoint(self._errors(name + gap))

    def is_callable(self, name: str) -> bool:
        """Whether the server has such a function, or a word that may stand before a parenthesis in an expression."""
        errors = set(self._errors(name))
        return UNKNOWN.isdisjoint(errors) and errors != {SYNTAX}

    def _errors(self, name: str) -> Iterator[int]:
        for form in re.split(r"[|\n]", FORMS.strip()):
            yield self._error(form.strip().format(name))

    def _error(self, expression: str) -> int:
        try:
            self._cursor.execute("PREPARE asked FROM %s", (f"SELECT {expression} FROM (SELECT 1 AS a) t",))
        except MySQLdb.Error as error:
            return int(error.args[0])
        return 0


def missing(connection: Any) -> set[str]:
    """The server's functions that the table does not have, harmless or not."""
    parser = Parser(connection)
    known = known_names()
    try:
        return {name for name in parser.names() if name not in known and parser.is_callable(name)}
    finally:
        parser.close()


def misread_calls(connection: Any, server_info: str) -> set[str]:
    """What the table has as harmless on this server, and might be a stored function there."""
    parser = Parser(connection)
    try:
        return {
            call
            for call in calls_of(server_info)
            if call[0] != "_" and not parser.is_never_stored(call.rstrip(), " " if call.endswith(" ") else "")
        }
    finally:
        parser.close()


def main() -> int:
    """Tell what is missing; 0 where nothing is."""
    with server_from_environment() as server:
        connection = server.connect()
        wrong = misread_calls(connection, connection.get_server_info())
        lacking = missing(connection)
    print("not in the table:", " ".join(sorted(lacking)) or "none")
    print("harmless in the table, and perhaps a stored function:", ", ".join(sorted(wrong)) or "none")
    return 1 if lacking or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
