"""The harness: one private database server for the run, Django on it, and what the tests look at the server with.

Plain pytest rather than pytest-django: most tests need real commits, threads and processes of their own, and aliases that
come and go.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from devtools.server import URL_VARIABLE, PrivateServer, Server, ServerError, server_from_environment
from tests.helpers import DATABASE, OTHER_DATABASE, Observer, numbers
from tests.sites import Site, serving

_SERVER = pytest.StashKey[Server]()


def pytest_configure(config: pytest.Config) -> None:
    """Set Django up before a test module is imported, for a server that is not started before a test needs it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the tests' processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(ServerError):  # of which the first test hears that needs a server
        server = config.stash[_SERVER] = server_from_environment()
        os.environ["MYSQLPOOL_TEST_DATABASE"] = json.dumps(server.settings(DATABASE))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from django.test.utils import setup_test_environment

    setup_test_environment()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Two for each core, since tests wait more than they work; none for a server that exists, which all would share."""
    if URL_VARIABLE in os.environ:
        return 0
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist itself reads it
    return min(2 * (os.cpu_count() or 1), 8)


def pytest_report_header(config: pytest.Config) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("Django", "SQLAlchemy", "mysqlclient", "asgiref"))
    server = config.stash.get(_SERVER, None)
    if not isinstance(server, PrivateServer):
        return versions
    return f"{'MariaDB' if server.is_mariadb else 'MySQL'} {server.version}, {versions}"


@pytest.fixture(scope="session")
def database(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The server, started, with the tests' database. pytest-xdist's workers have one each."""
    from django.core.management import call_command
    from django.db import connections

    server = pytestconfig.stash.get(_SERVER, None) or server_from_environment()
    with server:
        with closing(server.connect()) as connection:
            for statement in (f"DROP DATABASE IF EXISTS {DATABASE}", f"CREATE DATABASE {DATABASE}"):
                connection.query(statement)
        call_command("migrate", run_syncdb=True, verbosity=0)
        connections.close_all()
        yield server


@pytest.fixture(scope="session")
def server(database: Server) -> Server:
    """The same; a module may have another one in its place."""
    return database


@pytest.fixture
def observer(server: Server) -> Iterator[Observer]:
    observer = Observer(server)
    yield observer
    observer.close()


MakeAlias = Callable[..., Any]


@pytest.fixture
def make_alias(server: Server, observer: Observer) -> Iterator[MakeAlias]:
    """Makes database aliases: ``make_alias(pool={...}, options={...}, ENGINE=...)``.

    Each has a user of its own on the server, who may have ``at_most`` connections, unless ``like=`` names an alias to
    share the user with. Returns the wrapper of the calling thread. The aliases are gone when the test ends. There are no
    accounts when it begins.
    """
    from django.db import connections

    from django_mysqlpool import close_pool

    made: list[str] = []
    users: list[str] = []
    observer.query(f"DELETE FROM {DATABASE}.shop_account")  # which any other test may have left

    def make(
        alias: str | None = None,
        pool: Any = None,
        options: Any = None,
        like: str | None = None,
        at_most: int = 0,
        **entry: Any,
    ) -> Any:
        alias = alias or f"alias_{next(numbers)}"
        if like:
            user, password = (connections.settings[like][key] for key in ("USER", "PASSWORD"))
        else:
            user, password = observer.create_user(at_most)
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


@pytest.fixture
def serve(server: Server, observer: Observer, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Serves the tests' site: ``serve("gunicorn", pool={...}, at_most=3)``; one worker process."""
    with serving(server, observer, tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def celery_folder(tmp_path_factory) -> Iterator[None]:
    """Where Celery has its queue and its results. Of the run: the application, once imported, keeps to it."""
    folder = tmp_path_factory.mktemp("celery")
    for name in ("results", "queue", "control"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYSQLPOOL_TEST_CELERY", str(folder))
        yield


@pytest.fixture(scope="class", autouse=True)
def server_of_a_test_case(request: pytest.FixtureRequest) -> None:
    """Django's TestCase wants the database when its class is set up, before any fixture of a test."""
    from django.test import SimpleTestCase

    if request.cls is not None and issubclass(request.cls, SimpleTestCase):
        request.getfixturevalue("database")


@pytest.fixture
def restore_receivers() -> Callable[[], None]:
    """Has Django's own receivers of a request's signals stand where Django connects them."""
    from django.core.handlers.wsgi import WSGIHandler

    from django_mysqlpool.mysqlpool.backend import receivers as module

    def restore() -> None:
        module.request_started.disconnect(module._put_all_aside, sender=WSGIHandler)
        module.receivers.__init__()
        module.receivers.found += [*module._AT_START, *module._AT_END]
        module.put_back()
        module.receivers.__init__()

    return restore


@pytest.fixture
def djangos_receivers(restore_receivers: Callable[[], None]) -> Iterator[None]:
    restore_receivers()
    yield
    restore_receivers()


@pytest.fixture(autouse=True)
def nothing_left_out(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test but a unit test finds a server and an empty pool, and returns what it took; all is counted."""
    from django.db import connections

    from django_mysqlpool import close_pool, pool_statistics, pool_status
    from tests.helpers import wrong_sums

    if request.node.get_closest_marker("unit"):
        before = pool_status().keys()
        yield
        assert pool_status().keys() == before, "a unit test has made a pool"
        return
    request.getfixturevalue("database")
    yield
    connections.close_all()
    statistics = pool_statistics()
    out = {name: counts["out"] for name, counts in statistics.items() if counts["out"]}
    close_pool()
    assert not out, f"connections are still out: {out}"
    wrong = {name: found for name, counts in statistics.items() if (found := wrong_sums(counts))}
    assert not wrong, f"statistics do not add up: {wrong}"


@pytest.fixture(scope="module")
def other_database(server):
    connection = server.connect()
    connection.query(f"CREATE DATABASE IF NOT EXISTS {OTHER_DATABASE}")
    yield
    connection.query(f"DROP DATABASE {OTHER_DATABASE}")
    connection.close()
