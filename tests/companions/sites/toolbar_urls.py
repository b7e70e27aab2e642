from __future__ import annotations

from debug_toolbar.toolbar import debug_toolbar_urls
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.shop.models import Account
from tests.urls import urlpatterns as urls_of_shop

HTML = "<html><body>{}</body></html>"


def is_shown(request: HttpRequest) -> bool:
    """Not where the tests look at the pool: what the toolbar itself has out then is no leak."""
    return request.path != "/status/"


def page(request: HttpRequest) -> HttpResponse:
    """A read, a transaction and rows that are read in chunks, each by a cursor that the toolbar has wrapped."""
    Account.objects.filter(name="seen by the toolbar").count()
    with transaction.atomic():
        Account.objects.create(name="written").delete()
    rows = list(Account.objects.order_by("-id").iterator(chunk_size=2))
    return HttpResponse(HTML.format(len(rows)))


async def page_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(HTML.format(await Account.objects.filter(name="seen by the toolbar").acount()))


def page_with_error(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT no_such_column FROM shop_account")
    raise AssertionError


urlpatterns = [
    *urls_of_shop,
    path("page/", page),
    path("page-async/", page_async),
    path("page-with-error/", page_with_error),
    *debug_toolbar_urls(),
]
