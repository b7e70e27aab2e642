"""The documentation's example: Django's ORM in a Starlette application, behind ``ConnectionReleaseASGI``."""

import asyncio
import os

import django
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django_mysqlpool import pool_status  # noqa: E402
from django_mysqlpool.middleware import ConnectionReleaseASGI  # noqa: E402
from tests.shop.models import Account  # noqa: E402


def status(request: Request) -> JSONResponse:
    return JSONResponse({"pools": pool_status()})


def count(request: Request) -> PlainTextResponse:  # Starlette runs it in a thread of anyio's
    return PlainTextResponse(str(Account.objects.count()))


async def count_async(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(await Account.objects.acount()))


async def to_thread(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(await asyncio.to_thread(Account.objects.count)))


routes = [Route(f"/{view.__name__}/", view) for view in (status, count, count_async, to_thread)]
application = ConnectionReleaseASGI(Starlette(routes=routes))
