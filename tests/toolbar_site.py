"""A project with Django Debug Toolbar and the panel: settings, views and, as a program, requests by Django's clients.

``python -m tests.toolbar_site sync|async|at-once PATH ...`` prints, as JSON, what the panel has of each request.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from contextvars import Context

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES as GIVEN
from tests.settings import INSTALLED_APPS, MIDDLEWARE

DEBUG = True
ROOT_URLCONF = "tests.toolbar_site"
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.staticfiles", "debug_toolbar"]
MIDDLEWARE = [*MIDDLEWARE, "debug_toolbar.middleware.DebugToolbarMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEBUG_TOOLBAR_PANELS = ["debug_toolbar.panels.sql.SQLPanel", "django_mysqlpool.monitoring.debug_toolbar.PoolPanel"]
DEBUG_TOOLBAR_CONFIG = {
    "IS_RUNNING_TESTS": False,
    "SHOW_TOOLBAR_CALLBACK": "tests.toolbar_site.is_shown",
    "ENABLE_STACKTRACES": "MYSQLPOOL_TEST_WITHOUT_STACKS" not in os.environ,
}
SECRET = "a secret"
_ONE = {"pool_size": 1, "max_overflow": 0, "release": "request"}


def _with_pool(**pool: object) -> dict[str, object]:
    entry = GIVEN["default"]
    return {**entry, "OPTIONS": {**entry.get("OPTIONS", {}), "pool": pool}}


DATABASES = {
    "default": _with_pool(pool_size=8, max_overflow=0, release="request"),
    "one": _with_pool(**_ONE),
    "hurried": _with_pool(**_ONE, timeout=0.05),
    "pinned": _with_pool(release="transaction"),
}


def is_shown(request) -> bool:
    return True


def page(text: object):
    from django.http import HttpResponse

    return HttpResponse(f"<html><body>{text}</body></html>")


def nothing(request):
    return page("nothing")


def count(request):
    from tests.shop.models import Account

    return page(Account.objects.count())  # the line of count()


async def count_async(request):
    from tests.shop.models import Account

    return page(await Account.objects.acount())  # the line of count_async()


def two_aliases(request):
    from tests.shop.models import Account

    return page([Account.objects.using(alias).count() for alias in ("default", "pinned")])


def dirty(request):
    """Leaves a variable in the session, and returns the connection in the middle of the request."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SET @left_behind = %s", [SECRET])
    connection.close()
    return page("dirty")


def pinned(request):
    from django.db import connections

    with connections["pinned"].cursor() as cursor:
        cursor.execute("SET @left_behind = %s", [SECRET])
    return page("pinned")


def wait(request):
    """Waits for the connection that a thread, which is none of the request's, has."""
    from tests.shop.models import Account

    is_held, thread = holder("one", until=lambda status: status["waiting"])
    is_held.wait(timeout=60)
    counted = Account.objects.using("one").count()  # the line of wait()
    thread.join()
    return page(counted)


def timeout(request):
    from django_mysqlpool import PoolTimeout
    from tests.shop.models import Account

    is_done = threading.Event()
    is_held, thread = holder("hurried", until=lambda _: is_done.is_set())
    is_held.wait(timeout=60)
    try:
        Account.objects.using("hurried").count()
    except PoolTimeout:
        return page("timeout")
    finally:
        is_done.set()
        thread.join()


def holder(alias: str, until):
    from django.db import connections

    from django_mysqlpool import hold_connection, pool_status
    from tests.helpers import eventually

    is_held = threading.Event()

    def hold() -> None:
        with hold_connection(alias):
            connections[alias].ensure_connection()
            name = connections[alias].pool.name
            is_held.set()
            eventually(lambda: pool_status()[name], until)
        connections.close_all()

    thread = threading.Thread(target=Context().run, args=(hold,))
    thread.start()
    return is_held, thread


def threads(request):
    from django_mysqlpool import PooledThreadPoolExecutor
    from tests.shop.models import Account

    with PooledThreadPoolExecutor(max_workers=1) as executor:
        return page(list(executor.map(lambda _: Account.objects.count(), range(2))))


def fail(request):
    from tests.shop.models import Account

    Account.objects.count()
    raise RuntimeError("the view fails")


def __getattr__(name: str):
    """``urlpatterns``, once they are asked for: Django is set up then."""
    if name != "urlpatterns":
        raise AttributeError(name)
    from debug_toolbar.toolbar import debug_toolbar_urls
    from django.urls import path

    views = [nothing, count, count_async, two_aliases, dirty, pinned, wait, timeout, threads, fail]
    return [*(path(f"{view.__name__}/", view) for view in views), *debug_toolbar_urls()]


def main(kind: str, paths: list[str]) -> None:
    import django

    django.setup()
    from debug_toolbar.toolbar import DebugToolbar
    from django.db import connections
    from django.test import AsyncClient, Client

    from django_mysqlpool.mysqlpool.pool.events import observers

    toolbars: list[DebugToolbar] = []
    DebugToolbar._created.connect(lambda sender, toolbar, **_: toolbars.append(toolbar), weak=False)
    if kind == "sync":
        client = Client(raise_request_exception=False)
        answers = [client.get(path) for path in paths]
    else:
        client = AsyncClient(raise_request_exception=False)

        async def request() -> list[object]:
            if kind == "async":
                return [await client.get(path) for path in paths]
            return await asyncio.gather(*map(client.get, paths))

        answers = asyncio.run(request())
    told = []
    for toolbar in toolbars:
        panel = toolbar.get_panel_by_id("PoolPanel")
        told.append(
            {
                "path": toolbar.request.path,
                "statistics": panel.get_stats(),
                "subtitle": panel.nav_subtitle,
                "content": panel.content if panel.get_stats() else "",
            }
        )
    stored = [
        Client().get("/__debug__/render_panel/", {"request_id": toolbar.request_id, "panel_id": "PoolPanel"})
        for toolbar in toolbars
    ]
    print(
        json.dumps(
            {
                "status": [answer.status_code for answer in answers],
                "bodies": [answer.text for answer in answers],
                "told": told,
                "stored": [answer.json()["content"] for answer in stored],
                "observers": sum(map(len, observers.values())),
            }
        )
    )
    connections.close_all()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
