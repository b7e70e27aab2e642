"""The table of functions, against the server at hand; and stored functions that have a built-in one's name."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connections

from devtools.functions import Parser, misread_calls, missing
from django_mysqlpool.mysqlpool.backend.threads import check_in
from django_mysqlpool.mysqlpool.functions import NOT_HARMLESS, calls_of, known_names
from tests.helpers import RELEASE, fetch

pytestmark = pytest.mark.server


@pytest.fixture
def connection(server):
    connection = server.connect()
    yield connection
    connection.close()


def test_no_function_of_the_server_is_missing(connection):
    assert missing(connection) == set()


def test_what_is_harmless_can_not_be_a_stored_function(connection):
    assert misread_calls(connection, connection.get_server_info()) == set()


def test_the_look_at_the_server_can_fail(connection):
    parser = Parser(connection)
    try:
        assert parser.is_callable("abs")
        assert not parser.is_callable("no_such_function")
        assert not parser.is_callable("from")
        assert parser.is_never_stored("abs", " ")
        assert not parser.is_never_stored("now", " ")
        assert {"abs", "get_lock"} <= parser.names()
    finally:
        parser.close()


def test_what_is_not_harmless_is_in_no_list_of_both_servers():
    geometry = set(NOT_HARMLESS["with another number of arguments, MariaDB takes the name for a stored function's"].split())
    others = {name for names in NOT_HARMLESS.values() for name in names.split()} - geometry
    for server_info in ("12.0.1-MariaDB", "9.7.0"):
        assert others.isdisjoint(calls_of(server_info))
    assert others | geometry <= known_names()


NAMES = [
    "own",
    "now",
    "count",
    "left",
    "uuid",
    "uuid_to_bin",
    "any_value",
    "nvl2",
    "median",
    "column_get",
    "point",
    "md5",
    "rank",
]
CALLS = [
    "{}()",
    "{} ()",
    "{}\n()",
    "{}/* */()",
    "`{}`()",
    "{}(1)",
    "{} (1)",
    "d.{}()",
    "d . {} ()",
    "`d`.`{}`()",
    "d.`{}`/**/()",
]


@pytest.fixture
def stored_functions(observer, make_alias):
    """In the alias' database: functions of these names that leave a user variable and a lock."""
    observer.query("CREATE DATABASE mysqlpool_tests_functions")
    try:
        for name in NAMES:
            observer.query(
                f"CREATE FUNCTION mysqlpool_tests_functions.`{name}`() RETURNS INT DETERMINISTIC "
                "BEGIN SET @left_behind = 1; RETURN GET_LOCK('left_behind', 0); END"
            )
        yield make_alias(NAME="mysqlpool_tests_functions", pool={"pool_size": 1, "max_overflow": 0})
    finally:
        observer.query("DROP DATABASE mysqlpool_tests_functions")


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_function_leaves_nothing_whatever_its_name(stored_functions, observer, name):
    wrapper = stored_functions
    left = 0
    for call in CALLS:
        call = call.replace("d.", "mysqlpool_tests_functions.").replace("d .", "mysqlpool_tests_functions .")
        sql = "SELECT " + call.replace("`d`", "mysqlpool_tests_functions").format(name)
        try:
            fetch(wrapper, sql)
            left += bool(fetch(wrapper, "SELECT 1, @left_behind")[0][1]) if RELEASE == "request" else 1
        except DatabaseError:
            pass
        check_in(wrapper.alias)
        assert observer.query("SELECT IS_FREE_LOCK('left_behind')") == [(1,)], sql
        assert fetch(wrapper, "SELECT @left_behind") == [(None,)], sql
        check_in(wrapper.alias)
    assert left  # some of these are calls of the stored function
    assert connections[wrapper.alias] is wrapper
