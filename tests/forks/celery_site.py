"""A Celery application with its Django fixup; the worker's main process has a connection before it forks.

Where ``MYSQLPOOL_TEST_IDLE_MAIN`` is set, it closes what Django's checks have opened there, as docs/companions.md has it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_shutdown
from django.db import connection, transaction

from django_mysqlpool import close_pool, pool_status

FOLDER = Path(os.environ["MYSQLPOOL_TEST_CELERY"])
# A fixup is made with the application, where DJANGO_SETTINGS_MODULE is set.
app = Celery("tests.forks.celery_site", backend=f"tests.forks.celery_files:Backend+file://{FOLDER / 'results'}")
OUTBOX = FOLDER / f"outbox-{os.getpid()}"
OUTBOX.mkdir(exist_ok=True)
app.conf.broker_transport = "tests.forks.celery_files:Transport"
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "queue"),
    "data_folder_out": str(OUTBOX),
    "control_folder": str(FOLDER / "control"),
    "polling_interval": 0.05,
}
app.conf.broker_connection_retry_on_startup = True
# Its own default handler would take over the root logger, and with it what the test looks for in the log.
app.conf.worker_hijack_root_logger = False


def own_id() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]


app.of_main = None


def open_connection(**_: object) -> None:
    app.of_main = own_id()


def look_again(**_: object) -> None:
    print(f"main process: {app.of_main} before, {own_id()} after", flush=True)


def close_what_the_checks_opened(**_: object) -> None:
    close_pool()


if "MYSQLPOOL_TEST_IDLE_MAIN" in os.environ:
    worker_init.connect(close_what_the_checks_opened, weak=False)
else:
    worker_init.connect(open_connection, weak=False)
    worker_shutdown.connect(look_again, weak=False)


@app.task
def work(number: int) -> dict[str, Any]:
    """Some queries, as a task does them, on this process' connection."""
    from tests.shop.models import Account

    with transaction.atomic():
        account = Account.objects.create(name=f"task {number}")
        account.delete()
    return {"pid": os.getpid(), "of_main": app.of_main, "own": own_id(), "number": number}


@app.task
def status() -> dict[str, Any]:
    """How the pools of the process are that runs it."""
    return pool_status()


@app.task
def sleep_on_server(seconds: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])
    return os.getpid()


@app.task
def leave_open() -> None:
    """End in the middle of a transaction, and leave a variable behind."""
    from tests.shop.models import Account

    with connection.cursor() as cursor:
        cursor.execute("SET @left_behind = 1")
    connection.set_autocommit(False)
    Account.objects.create(name="never committed")


@app.task
def look_around() -> list[Any]:
    """What of another task's is here: its variable, its rows, its transaction."""
    from tests.shop.models import Account

    with connection.cursor() as cursor:
        cursor.execute("SELECT @left_behind")
        (left_behind,) = cursor.fetchone()
    return [left_behind, Account.objects.filter(name="never committed").count(), not connection.get_autocommit()]


@app.task
def fail() -> None:
    from tests.shop.models import Account

    with transaction.atomic():
        Account.objects.create(name="never committed")
        raise RuntimeError("the task fails")


@app.task
def name_of(pk: int) -> str | None:
    """The name of an account, if this worker can see it."""
    from tests.shop.models import Account

    return Account.objects.filter(pk=pk).values_list("name", flat=True).first()
