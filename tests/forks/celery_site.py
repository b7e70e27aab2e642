"""A Celery application with its Django fixup; the worker's main process has a connection before it forks."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_init, worker_shutdown
from django.db import connection, transaction

FOLDER = Path(os.environ["MYSQLPOOL_TEST_CELERY"])
# A fixup is made with the application, where DJANGO_SETTINGS_MODULE is set.
app = Celery("tests.forks.celery_site", broker="filesystem://", backend=f"file://{FOLDER / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "queue"),
    "data_folder_out": str(FOLDER / "queue"),
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


@worker_init.connect(weak=False)
def open_connection(**_: object) -> None:
    app.of_main = own_id()


@worker_shutdown.connect(weak=False)
def look_again(**_: object) -> None:
    print(f"main process: {app.of_main} before, {own_id()} after", flush=True)


@app.task
def work(number: int) -> dict[str, int]:
    """Some queries, as a task does them, on this process' connection."""
    from tests.shop.models import Account

    with transaction.atomic():
        account = Account.objects.create(name=f"task {number}")
        account.delete()
    return {"pid": os.getpid(), "of_main": app.of_main, "own": own_id(), "number": number}
