"""What a client is told when a request got no connection."""

from __future__ import annotations

import inspect

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django import urls
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction
from django.http import HttpResponse
from django.template.response import SimpleTemplateResponse
from django.test import AsyncClient, Client, override_settings

from django_mysqlpool.middleware import ConnectionReleaseMiddleware

pytestmark = [pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode]


class Rendered:
    """A template that asks the database."""

    def __init__(self, ask):
        self._ask = ask

    def render(self, *_):
        return self._ask().content.decode()


def too_busy(request, error):
    """A site's own handler."""
    return HttpResponse(f"{request.path} {error.cap}", status=529)


class TestOverload:
    """A pool whose only connection somebody keeps."""

    @pytest.fixture
    def alias(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0}, ATOMIC_REQUESTS=True)
        kept = connections.create_connection(wrapper.alias)
        kept.set_autocommit(False)
        with kept.cursor() as cursor:
            cursor.execute("SELECT 1")
        yield wrapper.alias
        kept.rollback()
        kept.close()

    @staticmethod
    def get(view, client=Client, **changed):
        urlconf = type("URLConf", (), {"urlpatterns": [urls.path("orders/", view)]})
        with override_settings(ROOT_URLCONF=urlconf, **changed):
            get = client(raise_request_exception=False).get
            return (async_to_sync(get) if inspect.iscoroutinefunction(get) else get)("/orders/?token=secret")

    @staticmethod
    def view_of(alias, kind):
        def ask(request=None):
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
            return HttpResponse("answered")

        async def ask_async(request):
            return await sync_to_async(ask)()

        def in_template(request):
            return SimpleTemplateResponse(Rendered(ask))

        by_kind = {"sync": ask, "atomic": ask, "async": ask_async, "as it is rendered": in_template}
        return by_kind[kind] if kind == "atomic" else transaction.non_atomic_requests(using=alias)(by_kind[kind])

    @pytest.mark.parametrize("kind", ["sync", "atomic", "async", "as it is rendered"])
    @pytest.mark.parametrize("client", [Client, AsyncClient])
    def test_is_told_as_overload(self, kind, client, alias, caplog):
        response = self.get(self.view_of(alias, kind), client)
        assert response.status_code == 503
        assert response["Retry-After"] == "1"
        assert alias not in response.content.decode()
        (line,) = [record.message for record in caplog.records if "got no connection" in record.message]
        assert line.startswith(f"GET /orders/ got no connection: No connection for alias '{alias}'")
        assert "secret" not in line

    def test_debug_shows_the_error(self, alias):
        response = self.get(self.view_of(alias, "atomic"), DEBUG=True)
        assert response.status_code == 500
        assert b"PoolTimeout" in response.content

    def test_it_can_be_turned_off(self, alias):
        assert self.get(self.view_of(alias, "atomic"), MYSQLPOOL_OVERLOAD_HANDLER=False).status_code == 500

    @pytest.mark.parametrize("client", [Client, AsyncClient])
    def test_a_handler_of_the_sites(self, client, alias):
        path = f"{__name__}.too_busy"
        response = self.get(self.view_of(alias, "sync"), client, MYSQLPOOL_OVERLOAD_HANDLER=path)
        assert (response.status_code, response.content) == (529, b"/orders/ 1")

    def test_other_errors_are_djangos(self):
        def view(request):
            raise OperationalError(2006, "gone")

        assert self.get(view).status_code == 500

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (5, "is 5, it must be True, False or the dotted path of a function (request, error)."),
            ("nowhere.at_all", "which can't be imported: No module named 'nowhere'."),
            (f"{__name__}.pytestmark", "which is not a function (request, error)."),
        ],
    )
    def test_a_wrong_setting_is_found_at_the_start(self, value, words):
        with override_settings(MYSQLPOOL_OVERLOAD_HANDLER=value), pytest.raises(ImproperlyConfigured) as error:
            ConnectionReleaseMiddleware(lambda request: None)
        assert str(error.value).startswith("MYSQLPOOL_OVERLOAD_HANDLER is ")
        assert str(error.value).endswith(words)
