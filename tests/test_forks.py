"""Forks: a child starts without pools and leaves its parent's connections alone; the parent notices nothing.

The trials are programs of their own (``tests/forks/``), without pytest's threads, under ``-W error`` and, half of them,
Python's development mode.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import port_for
import pytest
from mirakuru import HTTPExecutor

from devtools.lifeline import tied
from tests import DRIVER
from tests.helpers import DATABASE, RELEASE, eventually
from tests.relay import Relay

pytestmark = [pytest.mark.python, pytest.mark.driver, pytest.mark.mode, pytest.mark.server]

STATES = ["idle", "held", "transaction"]
POOLS: dict[str, Any] = {
    "SQLAlchemy's QueuePool": {"pool_class": "sqlalchemy.pool.QueuePool", "reset_on_return": "rollback"},
    "NullPool": {"pool_class": "NullPool"},
    "StaticPool": {"pool_class": "StaticPool"},
}
if RELEASE == "transaction":
    del POOLS["NullPool"]  # it opens a connection for each statement; the trials want to see one again


TLS: dict[tuple[str, str], dict[str, Any]] = {
    ("mysqlclient", "plain"): {"ssl_mode": "DISABLED"},
    ("mysqlclient", "TLS"): {"ssl_mode": "REQUIRED"},
    ("pymysql", "plain"): {"ssl_disabled": True},
    ("pymysql", "TLS"): {"ssl_verify_cert": False},
}


#: Seconds for which a slow server says nothing: more than a handshake takes, less than connecting may.
SLOW = 2.5


@pytest.fixture(params=["plain", "TLS"])
def entry(request, server, observer) -> dict[str, Any]:
    """An entry of DATABASES with a user of its own, with TLS and without where the server has it."""
    if request.param == "TLS" and server.is_mariadb:
        pytest.skip("the private MariaDB has no certificate")
    options = {}
    if not server.is_mariadb:
        options = TLS[DRIVER, request.param]
    user, password = observer.create_user()
    return {**server.settings(DATABASE, pool={}, **options), "USER": user, "PASSWORD": password}


def environment(entry: dict[str, Any], **more: str) -> dict[str, str]:
    return {**os.environ, "MYSQLPOOL_TEST_DATABASE": json.dumps(entry), **more}


def command(*arguments: str, dev: bool = True) -> list[str]:
    return [sys.executable, *(["-X", "dev"] if dev else []), "-W", "error", "-m", *arguments]


Trial = Callable[..., None]


@pytest.fixture
def trial(entry, pytestconfig) -> Trial:
    """Runs one of ``tests/forks/trials.py``, which must succeed in silence."""

    def run(name: str, *arguments: str, pool: Any = None, dev: bool = True) -> None:
        entry["OPTIONS"]["pool"] = pool or {}
        done = subprocess.run(
            command("tests.forks.trials", name, *arguments, dev=dev),
            env=environment(entry),
            cwd=pytestconfig.rootpath,
            capture_output=True,
            text=True,
            timeout=280,  # of a busy machine; it takes a few seconds of a processor
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout + done.stderr == ""

    return run


class TestOneThread:
    @pytest.mark.parametrize("state", STATES)
    def test_parent_and_child_work_on(self, trial, state):
        trial("states", state)

    def test_without_development_mode(self, trial):
        trial("states", "transaction", dev=False)

    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_with_other_pools(self, trial, pool):
        trial("states", "held", pool=pool)

    def test_with_a_terminal(self, trial):
        trial("forkpty")

    def test_between_rows_that_are_read_one_by_one(self, trial):
        trial("unread")

    def test_within_a_request(self, trial):
        trial("scope")

    def test_beside_djangos_own_engine(self, trial):
        trial("stock")


class TestOtherThreads:
    @pytest.mark.parametrize("state", STATES)
    def test_what_they_have_stays_theirs(self, trial, state):
        trial("other_thread", state, "--collect")

    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_with_other_pools(self, trial, pool):
        trial("other_thread", "held", "--collect", pool=pool)

    def test_in_the_middle_of_a_statement(self, trial):
        trial("running")

    def test_200_forks_while_8_threads_check_out_and_in(self, trial):
        trial("churn", pool={"pool_size": 4, "max_overflow": 2}, dev=False)

    def test_a_lock_that_one_of_them_holds(self, trial):
        trial("locked")


class TestDescriptors:
    @pytest.mark.parametrize("state", [*STATES, "unread", "thread"])
    def test_a_number_that_another_socket_takes(self, trial, state):
        trial("daemon", state)

    @pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
    def test_it_is_safe_with_other_pools(self, trial, pool):
        trial("daemon", "thread", pool=pool)

    def test_other_programs_have_none(self, trial):
        trial("programs")

    @pytest.mark.parametrize("state", [*STATES, "statement", "connecting"])
    def test_a_killed_parents_sessions_end(self, entry, observer, state, pytestconfig):
        children = 10 if state == "connecting" else 1
        entry["OPTIONS"]["pool"] = {"pool_size": 8}
        with subprocess.Popen(
            command("tests.forks.trials", "orphans", state, str(children)),
            env=environment(entry),
            cwd=pytestconfig.rootpath,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            assert parent.stdout.readline() == b"forked\n"
            assert parent.wait() == -signal.SIGKILL
            eventually(lambda: observer.connections_of(entry["USER"]), lambda ids: not ids)
            # The children live still: they read what is closed only now.
            parent.stdin.close()
            assert parent.stdout.read() == b""

    def test_a_server_that_is_slow_to_answer(self, entry, pytestconfig):
        """A child has no socket of a connection that was being opened, however long that takes a server that answers."""
        with Relay(entry["HOST"], entry["PORT"]) as relay:
            entry["PORT"] = relay.port
            relay.hold_connects()
            with subprocess.Popen(
                command("tests.forks.trials", "connecting"),
                env=environment(entry),
                cwd=pytestconfig.rootpath,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as parent:
                eventually(lambda: relay.held, bool)
                parent.stdin.write(b"fork\n")
                parent.stdin.flush()
                assert parent.stdout.readline() == b"forking\n"
                threading.Event().wait(SLOW)
                relay.resume()
                assert parent.stdout.read() == b""
            assert parent.returncode == 0
            assert relay.left == 0


def test_close_pool_before_a_fork(trial):
    trial("closed_before")


class TestFrameworks:
    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_multiprocessing(self, trial, method):
        trial("by_multiprocessing", method)

    def test_gunicorn_with_preload(self, entry, observer, pytestconfig, tmp_path):
        """Workers forked from a master that has a connection; one is killed, and the master forks another."""
        port, log = port_for.select_random(), tmp_path / "log"
        gunicorn = command("gunicorn", "--preload", "--workers=2", "--no-control-socket", f"--bind=127.0.0.1:{port}")
        with (
            log.open("w") as file,
            HTTPExecutor(
                tied([*gunicorn, "--log-level=warning", "tests.forks.preloaded:application"]),
                url=f"http://127.0.0.1:{port}/",
                timeout=60,
                envvars={"MYSQLPOOL_TEST_DATABASE": json.dumps(entry)},
                cwd=pytestconfig.rootpath,
                stdout=file,
                stderr=subprocess.STDOUT,
                expected_returncode=0,
            ),
        ):
            answers: list[dict[str, int]] = []

            def ask() -> set[int]:
                answers.append(httpx.get(f"http://127.0.0.1:{port}/", timeout=60).json())
                return {answer["pid"] for answer in answers}

            eventually(ask, lambda pids: len(pids) == 2)
            os.kill(answers[0]["pid"], signal.SIGTERM)
            eventually(ask, lambda pids: len(pids) == 3)
            (of_master,) = {answer["of_master"] for answer in answers}
            assert of_master not in {answer["own"] for answer in answers}
            assert {answer["open_before"] for answer in answers} <= {0, 1}
            assert of_master in observer.connections_of(entry["USER"])
        assert "Error" not in log.read_text()

    def test_celery_with_its_fixup_for_django(self, entry, celery_folder, pytestconfig):
        from tests.forks.celery_site import app, work

        celery = command("celery", "-A", "tests.forks.celery_site", "worker", "--pool=prefork", "-c2", dev=False)
        celery[celery.index("error")] = "error::ResourceWarning"
        with subprocess.Popen(
            tied([*celery, "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning"]),
            env=environment(entry),
            cwd=pytestconfig.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as worker:
            try:
                results = [work.delay(number) for number in range(40)]
                answers = [result.get(timeout=60, interval=0.05) for result in results]
            finally:
                app.close()
                worker.send_signal(signal.SIGTERM)
                log, _ = worker.communicate(timeout=60)
        assert sorted(answer["number"] for answer in answers) == list(range(40)), log
        (of_main,) = {answer["of_main"] for answer in answers}
        assert len({answer["pid"] for answer in answers}) == 2
        assert of_main not in {answer["own"] for answer in answers}
        assert f"main process: {of_main} before, {of_main} after" in log
        assert "Traceback" not in log
        assert not any(f"/{name}/" in log for name in ("django_mysqlpool", "MySQLdb", "sqlalchemy")), log

    def test_djangos_parallel_test_runner(self, entry, server, pytestconfig):
        """``manage.py test --parallel 2`` forks workers from a process with connections; each uses a clone."""
        run = subprocess.run(
            command("django", "test", "--parallel", "2", "--noinput", "tests.shop", dev=False),
            capture_output=True,
            text=True,
            cwd=pytestconfig.rootpath,
            env=environment(entry, PYTHONPATH=str(pytestconfig.rootpath)),
            timeout=110,
        )
        assert run.returncode == 0, run.stderr
        assert "Ran 4 tests" in run.stderr
        assert "in parallel" not in run.stderr.lower() or "2 processes" in run.stderr
