"""The tests' site under real web servers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import port_for
from mirakuru import HTTPExecutor, SimpleExecutor

from devtools.lifeline import tied
from devtools.server import Server
from tests import OUTLIVES
from tests.helpers import DATABASE, Observer, eventually, numbers


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
        """Threads that outlive their request return when they are done; they may have yet to begin."""
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
            if next(numbers) % 2:
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
# (By default it closes a connection that is idle for two seconds, and resets a request that a busy client sends just then.)
_GTHREAD = [*_GUNICORN, "--worker-class=gthread", "--threads=16", "--keep-alive=60"]
_UVICORN = [sys.executable, "-m", "uvicorn", "--port={port}", "--log-level=warning"]
# Without --lazy-apps its master loads the site, and the worker is forked, in C. It closes a connection after one answer and
# says so only when told to: a client that reuses connections would at times be too quick to notice.
_UWSGI = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket=127.0.0.1:{port}", "--add-header=Connection: close"]
_UWSGI += ["--master", "--enable-threads", "--threads=16", "--die-on-term", "--worker-reload-mercy=10"]
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
