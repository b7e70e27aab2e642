"""Celery: workers of threads that share a pool, workers of processes with a pool each; forks have tests of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, transaction

from devtools.lifeline import tied
from tests.companions import CAP, needs
from tests.helpers import DATABASE, Observer, eventually, status_of
from tests.shop.models import Account

needs("celery")

pytestmark = pytest.mark.companion


@contextmanager
def worker(server, pool: dict[str, Any], *arguments: str, at_most: int = 0) -> Iterator[Any]:
    """A Celery worker beside this process; gives the module with its tasks."""
    from tests.forks import celery_site

    observer = Observer(server)
    user, password = observer.create_user(at_most)
    observer.close()
    entry = {**server.settings(DATABASE, pool=pool), "USER": user, "PASSWORD": password}
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "celery", "-A", "tests.forks.celery_site", "worker"]
    with subprocess.Popen(
        tied([*command, *arguments, "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning"]),
        env={**os.environ, "MYSQLPOOL_TEST_DATABASE": json.dumps(entry), "MYSQLPOOL_TEST_IDLE_MAIN": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield celery_site
        finally:
            celery_site.app.close()
            process.send_signal(signal.SIGTERM)
            log, _ = process.communicate(timeout=60)
    assert "OperationalError" not in log
    assert "ResourceWarning" not in log


def answer(result: Any) -> Any:
    return result.get(timeout=60, interval=0.02)


def run(task: Any, arguments: list[Any]) -> list[Any]:
    """Have a worker do a task with each of the arguments."""
    return [answer(result) for result in [task.delay(*argument) for argument in arguments]]


class TestProcesses:
    """A process does one task at a time, and needs one connection."""

    def connections_of_tasks(self, server, pool: dict[str, Any]) -> set[int]:
        with worker(server, pool, "--pool=prefork", "-c1", at_most=1) as tasks:
            answers = run(tasks.work, [[number] for number in range(10)])
            assert [answer["number"] for answer in answers] == list(range(10))
            assert run(tasks.leave_open, [[]]) == [None]
            assert run(tasks.look_around, [[]]) == [[None, 0, False]]
            assert all(status["out"] == 0 for status in answer(tasks.status.delay()).values())
        return {answer["own"] for answer in answers}

    def test_a_connection_serves_many_tasks(self, server, celery_folder):
        assert len(self.connections_of_tasks(server, pool={})) == 1

    def test_celery_closes_a_pool_in_options(self, server, celery_folder):
        """After each task, as it does with Django's own for PostgreSQL; not one that the options don't mention."""
        assert len(self.connections_of_tasks(server, pool={"pool_size": 1, "max_overflow": 0})) == 10


@pytest.fixture(scope="module")
def tasks(server, celery_folder) -> Iterator[Any]:
    """Eight threads of a worker, over two connections; the server would refuse a third.

    It takes tasks until the end of the module, and so comes last.
    """
    with worker(server, {"pool_size": CAP, "max_overflow": 0}, "--pool=threads", "-c8", at_most=CAP) as tasks:
        yield tasks


class TestThreads:
    @pytest.fixture(autouse=True)
    def nothing_is_out_afterwards(self, tasks) -> Iterator[None]:
        yield

        def status() -> dict[str, Any]:
            (told,) = answer(tasks.status.delay()).values()
            assert told["open"] <= CAP
            return told

        # (A task that nobody has asked for its result may be at work still.)
        eventually(status, lambda told: told["out"] == 0)

    def test_they_share_connections(self, tasks):
        answers = run(tasks.work, [[number] for number in range(60)])
        assert [answer["number"] for answer in answers] == list(range(60))
        assert len({answer["own"] for answer in answers}) <= CAP

    def test_they_wait_for_one(self, tasks):
        assert len(run(tasks.sleep_on_server, [[0.1]] * 16)) == 16

    def test_what_a_task_leaves_the_next_does_not_find(self, tasks):
        run(tasks.leave_open, [[]] * 8)
        assert run(tasks.look_around, [[]] * 8) == [[None, 0, False]] * 8

    def test_tasks_that_fail(self, tasks):
        for result in [tasks.fail.delay() for _ in range(8)]:
            with pytest.raises(RuntimeError, match="the task fails"):
                answer(result)
        assert run(tasks.look_around, [[]]) == [[None, 0, False]]

    def test_a_task_on_commit(self, tasks):
        """``delay_on_commit``: the task sees what was written; what was rolled back starts none."""
        sent = []

        def send(pk: int) -> None:
            sent.append(tasks.name_of.delay(pk))

        with transaction.atomic():
            account = Account.objects.create(name="for the task")
            transaction.on_commit(lambda: send(account.pk))
            tasks.name_of.delay_on_commit(account.pk)
            assert sent == []
        with pytest.raises(RuntimeError), transaction.atomic():
            transaction.on_commit(lambda: send(0))
            raise RuntimeError
        assert [answer(result) for result in sent] == ["for the task"]
        account.delete()
        connection.close()
        assert status_of(connection)["out"] == 0
