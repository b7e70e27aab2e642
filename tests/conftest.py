"""The harness: one private database server for the run, Django on it, and what the tests look at the server with.

Plain pytest rather than pytest-django: most tests need real commits, threads and processes of their own, and aliases that
come and go.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import port_for
import pytest
from mirakuru import HTTPExecutor, SimpleExecutor
from MySQLdb.constants import CLIENT

from devtools.lifeline import tied
from devtools.server import Server, server_from_environment
from tests import DRIVER, OUTLIVES

DATABASE = "mysqlpool_tests"
_numbers = itertools.count(1)


#: What the pools of the tests' aliases have for ``release``, unless a test says otherwise.
RELEASE = os.environ.get("MYSQLPOOL_TEST_RELEASE", "request")
#: For a test about a connection that stays out between statements.
holds = pytest.mark.skipif(RELEASE == "transaction", reason="about a connection that is held for a request")
#: OPTIONS for a test that sends several statements in one string, which PyMySQL does only if it is told to.
SEVERAL_STATEMENTS = {} if DRIVER == "mysqlclient" else {"client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS}


def mysqlclient_only(reason: str) -> pytest.MarkDecorator:
    """For a test that rests on mysqlclient; ``reason`` says on what of it."""
    return pytest.mark.skipif(DRIVER != "mysqlclient", reason=reason)


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
    from django.db import connections
    from django.test.utils import setup_test_environment

    setup_test_environment()
    call_command("migrate", run_syncdb=True, verbosity=0)
    connections.close_all()


_SERVER = pytest.StashKey[Server]()


def pytest_report_header(config: pytest.Config) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("Django", "SQLAlchemy", "mysqlclient", "asgiref"))
    server = config.stash[_SERVER]
    kind = "MariaDB" if server.is_mariadb else "MySQL"
    return f"{kind} {server.version}, {versions}"


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

    def create_user(self, at_most: int = 0) -> tuple[str, str]:
        """A user of its own for a test, so that the test's connections can be told apart on the server.

        The server refuses a connection beyond ``at_most`` (0: no limit), which proves a cap better than counting does.
        """
        name, password = f"pool_{os.getpid()}_{next(_numbers)}", "s3cret-of-a-test"
        self.query(f"CREATE USER '{name}'@'%%' IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS {at_most}")
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

    Each has a user of its own on the server, who may have ``at_most`` connections, unless ``like=`` names an alias to
    share the user with. Returns the wrapper of the calling thread. The aliases are gone when the test ends.
    """
    from django.db import connections

    from django_mysqlpool import close_pool

    made: list[str] = []
    users: list[str] = []

    def make(
        alias: str | None = None,
        pool: Any = None,
        options: Any = None,
        like: str | None = None,
        at_most: int = 0,
        **entry: Any,
    ) -> Any:
        alias = alias or f"alias_{next(_numbers)}"
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


def eventually(look: Callable[[], Any], is_so: Callable[[Any], bool], seconds: float = 30) -> None:
    """Wait for what is on its way, and tell what was seen where it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so(seen := look()):
        assert time.monotonic() < deadline, f"still, after {seconds} s: {seen}"


class Site:
    """The tests' site under a real web server, with a client for it."""

    def __init__(self, port: int, user: str, log: Path, process: SimpleExecutor) -> None:
        self.user = user
        self.log = log
        self.process = process
        self.port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def status(self) -> dict[str, Any]:
        """How the (one) worker is, as it says itself."""
        return self.get("/status/").json()

    def out(self) -> int:
        """How many connections the worker has out."""
        return sum(status["out"] for status in self.status()["pools"].values())

    def wait_until_none_is_out(self) -> None:
        """Threads that outlive their request give back when they are done; they may have yet to begin."""
        eventually(
            self.status,
            lambda status: (
                OUTLIVES not in status.get("threads", ()) and not any(pool["out"] for pool in status["pools"].values())
            ),
        )

    def leave_early(self, path: str) -> None:
        """Send a request and hang up without waiting for more than the first byte of its answer, or not even that."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            if next(_numbers) % 2:
                connection.recv(1)

    def storm(self, paths: Sequence[str], leave: Callable[[int], bool] = lambda _: False) -> Counter[int]:
        """Request all the paths, some at a time; how often each status code came back.

        The clients whose number ``leave`` says so of hang up early.
        """

        def visit(number: int, path: str) -> int:
            if leave(number):
                self.leave_early(path)
                return 0
            try:
                return self.get(path).status_code
            except httpx.RemoteProtocolError:
                return -1  # a stream that broke off

        with ThreadPoolExecutor(20) as executor:
            return Counter(executor.map(visit, range(len(paths)), paths))


_GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind=127.0.0.1:{port}"]
_GTHREAD = [*_GUNICORN, "--worker-class=gthread", "--threads=16"]
_UVICORN = [sys.executable, "-m", "uvicorn", "--port={port}", "--log-level=warning"]
# Without --lazy-apps its master loads the site, and the worker is forked, in C. It closes a connection after one answer and
# says so only when told to: a client that reuses connections would at times be too quick to notice.
_UWSGI = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket=127.0.0.1:{port}", "--add-header=Connection: close"]
_UWSGI += ["--master", "--enable-threads", "--threads=16", "--die-on-term"]
WEB_SERVERS = {
    "gunicorn": [*_GTHREAD, "tests.wsgi"],
    "gunicorn sync": [*_GUNICORN, "tests.wsgi"],
    "gunicorn preload": [*_GTHREAD, "--preload", "tests.wsgi"],
    "gunicorn wrapped": [*_GTHREAD, "tests.wsgi:wrapped"],
    "gunicorn gevent": [*_GUNICORN, "--worker-class=gevent", "tests.wsgi"],
    "uwsgi": [*_UWSGI, "--module=tests.wsgi"],
    "uwsgi wrapped": [*_UWSGI, "--module=tests.wsgi:wrapped"],
    "uvicorn": [*_UVICORN, "tests.asgi:application"],
    "uvicorn wrapped": [*_UVICORN, "tests.asgi:wrapped"],
    "starlette": [*_UVICORN, "tests.starlette_site:application"],
    "fastapi": [*_UVICORN, "tests.fastapi_site:application"],
    "channels": [*_UVICORN, "tests.companions.sites.channels_asgi:application"],
    "hypercorn wrapped": [sys.executable, "-m", "hypercorn", "--bind=127.0.0.1:{port}", "tests.asgi:wrapped"],
}


@pytest.fixture
def serve(server: Server, observer: Observer, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Serves the tests' site: ``serve("gunicorn", pool={...}, at_most=3)``; one worker process."""
    with serving(server, observer, tmp_path) as start:
        yield start


@contextmanager
def serving(server: Server, observer: Observer, folder: Path) -> Iterator[Callable[..., Site]]:
    """What ``serve`` does, for as long as the block lasts; with logs in a folder."""
    with ExitStack() as stack:

        def start(kind: str, pool: Any = True, at_most: int = 0, **environment: str) -> Site:
            user, password = observer.create_user(at_most)
            entry = {**server.settings(DATABASE, pool=pool), "USER": user, "PASSWORD": password}
            port = port_for.select_random()
            log = folder / f"{kind}.log"
            executor = HTTPExecutor(
                tied([part.format(port=port) for part in WEB_SERVERS[kind]]),
                url=f"http://127.0.0.1:{port}/status/",
                method="GET",
                timeout=60,
                envvars={"MYSQLPOOL_TEST_DATABASE": json.dumps(entry), **environment},
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
                expected_returncode=-15 if "uvicorn" in " ".join(WEB_SERVERS[kind]) else 0,
            )
            stack.enter_context(executor)
            site = Site(port, user, log, executor)
            stack.callback(site.client.close)
            return site

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
