"""The documentation's example: Django's ORM in a FastAPI application, behind ``ConnectionReleaseASGI``."""

import os
from typing import Any

import django
from fastapi import BackgroundTasks, FastAPI, HTTPException

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django_mysqlpool import pool_status  # noqa: E402
from django_mysqlpool.middleware import ConnectionReleaseASGI  # noqa: E402
from tests.shop.models import Account  # noqa: E402

api = FastAPI()


@api.get("/status/")
def status() -> dict[str, Any]:
    return {"pools": pool_status()}


@api.get("/count/")
def count() -> int:  # FastAPI runs it in a thread of anyio's
    return Account.objects.count()


@api.get("/count_async/")
async def count_async() -> int:
    return await Account.objects.acount()


@api.get("/accounts/{name}/")
async def account(name: str) -> dict[str, Any]:
    found = await Account.objects.filter(name=name).values("name").afirst()
    if found is None:
        raise HTTPException(404)
    return found


@api.post("/accounts/{name}/", status_code=202)
def create(name: str, tasks: BackgroundTasks) -> None:
    tasks.add_task(Account.objects.create, name=name)  # after the answer, and part of the request still


application = ConnectionReleaseASGI(api)
