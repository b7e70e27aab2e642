"""APScheduler: its worker threads outlive their jobs, and with them what a job has checked out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from django.db import connections

from django_mysqlpool import PoolTimeout, auto_close_db
from tests.companions import needs
from tests.helpers import eventually, holds, status_of
from tests.shop.models import Account

needs("apscheduler")

from apscheduler.executors.pool import ThreadPoolExecutor  # noqa: E402
from apscheduler.schedulers.background import BackgroundScheduler  # noqa: E402

pytestmark = pytest.mark.companion

CAP = 2
WORKERS = 3


@pytest.fixture
def alias(make_alias):
    return make_alias(pool={"pool_size": CAP, "max_overflow": 0, "timeout": 1}, at_most=CAP).alias


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(WORKERS)})
    scheduler.start()
    yield scheduler
    scheduler.shutdown()


def results(scheduler: BackgroundScheduler, alias: str, decorate=lambda job: job) -> list[object]:
    """What jobs return or raise that query at the same time, one in each worker."""
    here = threading.Barrier(WORKERS)
    done: list[Future[int]] = [Future() for _ in range(WORKERS)]

    @decorate
    def count() -> int:
        return Account.objects.using(alias).count()

    def job(future: Future[int]) -> None:
        here.wait(30)
        try:
            future.set_result(count())
        except Exception as error:
            future.set_exception(error)

    for future in done:
        scheduler.add_job(job, args=[future])
    return [future.exception(timeout=30) or future.result() for future in done]


@holds
def test_workers_beyond_the_cap_find_no_connection(scheduler, alias):
    """The others keep theirs until they end, whatever their jobs do."""
    assert {type(result) for result in results(scheduler, alias)} == {int, PoolTimeout}
    assert status_of(connections[alias])["out"] == CAP
    scheduler.shutdown()
    eventually(lambda: status_of(connections[alias])["out"], lambda out: out == 0)
    scheduler.start()  # for the fixture to end


def test_decorated_jobs_share(scheduler, alias):
    assert results(scheduler, alias, auto_close_db) == [0] * WORKERS
    assert status_of(connections[alias])["out"] == 0
