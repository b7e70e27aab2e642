"""The views of the tests' site."""

from __future__ import annotations

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from django_mysqlpool import pool_status
from tests.shop.models import Account


def status(request: HttpRequest) -> JsonResponse:
    return JsonResponse(pool_status())


def count(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Account.objects.count()))


async def count_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Account.objects.acount()))


def fail(request: HttpRequest) -> HttpResponse:
    Account.objects.count()
    raise RuntimeError("the view fails")


def leave_open(request: HttpRequest) -> HttpResponse:
    connection.set_autocommit(False)
    Account.objects.create(name="never committed")
    return HttpResponse("left open")


urlpatterns = [
    path("status/", status),
    path("count/", count),
    path("count-async/", count_async),
    path("fail/", fail),
    path("leave-open/", leave_open),
]
