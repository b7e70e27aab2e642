"""The harness: one private database server for the run, Django on it, and what the tests look at the server with.

Plain pytest rather than pytest-django: most tests need real commits, threads and processes of their own, and aliases that
come and go.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devtools.server import Server, server_from_environment

DATABASE = "mysqlpool_tests"
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and set Django up before a test module is imported."""
    server = server_from_environment()
    server.start()
    config.add_cleanup(server.close)
    config.stash[_SERVER] = server
    _execute(server, f"DROP DATABASE IF EXISTS {DATABASE}", f"CREATE DATABASE {DATABASE}")
    os.environ["MYSQLPOOL_TEST_DATABASE"] = json.dumps(server.settings(DATABASE))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from django.core.management import call_command
    from django.test.utils import setup_test_environment

    setup_test_environment()
    call_command("migrate", run_syncdb=True, verbosity=0)


_SERVER = pytest.StashKey[Server]()


def pytest_report_header(config: pytest.Config) -> str:
    import django
    import MySQLdb
    import sqlalchemy

    server = config.stash[_SERVER]
    kind = "MariaDB" if server.is_mariadb else "MySQL"
    return (
        f"{kind} {server.version}, Django {django.__version__}, SQLAlchemy {sqlalchemy.__version__}, "
        f"mysqlclient {MySQLdb.__version__}"
    )


def _execute(server: Server, *statements: str) -> None:
    connection = server.connect()
    try:
        for statement in statements:
            connection.query(statement)
    finally:
        connection.close()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    return pytestconfig.stash[_SERVER]


class Observer:
    """Looks at the server from outside any pool."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = server.connect()

    def query(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall())

    def connections_of(self, user: str) -> set[int]:
        """The server's ids of the connections of a user."""
        rows = self.query("SELECT id FROM information_schema.processlist WHERE user = %s", user)
        return {row[0] for row in rows}

    def create_user(self) -> tuple[str, str]:
        """A user of its own for a test, so that the test's connections can be told apart on the server."""
        name, password = f"pool_{os.getpid()}_{next(_numbers)}", "s3cret-of-a-test"
        self.query(f"CREATE USER '{name}'@'%%' IDENTIFIED BY '{password}'")
        self.query(f"GRANT ALL ON *.* TO '{name}'@'%%'")
        return name, password

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def observer(server: Server) -> Iterator[Observer]:
    observer = Observer(server)
    yield observer
    observer.close()


MakeAlias = Callable[..., Any]


@pytest.fixture
def make_alias(server: Server, observer: Observer) -> Iterator[MakeAlias]:
    """Makes database aliases: ``make_alias(pool={...}, options={...}, ENGINE=...)``.

    Each has a user of its own on the server, unless ``like=`` names an alias to share the user with. Returns the wrapper
    of the calling thread. The aliases are gone when the test ends.
    """
    from django.db import connections

    from django_mysqlpool import close_pool

    made: list[str] = []
    users: list[str] = []

    def make(alias: str | None = None, pool: Any = None, options: Any = None, like: str | None = None, **entry: Any) -> Any:
        alias = alias or f"alias_{next(_numbers)}"
        if like:
            user, password = (connections.settings[like][key] for key in ("USER", "PASSWORD"))
        else:
            user, password = observer.create_user()
            users.append(user)
        given = dict(options or {})
        if pool is not None:
            given["pool"] = pool
        settings = {**server.settings(DATABASE, **given), "USER": user, "PASSWORD": password}
        settings = {"ENGINE": "django_mysqlpool.backends.mysqlpool", **settings, **entry}
        databases = {"default": connections.settings["default"], alias: settings}
        connections.settings[alias] = connections.configure_settings(databases)[alias]
        made.append(alias)
        return connections[alias]

    yield make
    for alias in made:
        connection = getattr(connections._connections, alias, None)
        if connection is not None:
            connection.close()
            close_pool(alias)
            del connections[alias]
        del connections.settings[alias]
    for user in users:
        observer.query(f"DROP USER '{user}'@'%%'")


@pytest.fixture(autouse=True)
def nothing_left_out() -> Iterator[None]:
    """Each test starts from an empty pool and gives back what it took."""
    from django.db import connections

    from django_mysqlpool import close_pool, pool_status

    yield
    connections.close_all()
    out = {name: status["out"] for name, status in pool_status().items() if status["out"]}
    close_pool()
    assert not out, f"connections are still out: {out}"
