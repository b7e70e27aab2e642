"""The checks of what web servers and the database server make of the settings."""

from __future__ import annotations

import asyncio
import inspect
import sys
from types import ModuleType

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.core.checks import run_checks
from django.db import connections
from django.test import AsyncClient, override_settings

from django_mysqlpool.checks.alias_options import DEFAULT_OVERFLOW, DEFAULT_SIZE
from django_mysqlpool.checks.requests import asgi_wrappers
from django_mysqlpool.middleware import ConnectionReleaseASGI, ConnectionReleaseMiddleware
from django_mysqlpool.mysqlpool.pool.slot_pool import SlotPool
from tests import DRIVER
from tests.helpers import fetch, mysqlclient_only

pytestmark = [pytest.mark.django, pytest.mark.server]


def told(alias: str, **how) -> list[str]:
    """The ids of this package's messages about an alias."""
    return [
        m.id.partition(".")[2] for m in run_checks(**how) if m.id.startswith("django_mysqlpool") and f"'{alias}'" in m.msg
    ]


def of_database(alias: str) -> list:
    return [m for m in run_checks(tags=["database"], databases=[alias]) if m.id.startswith("django_mysqlpool")]


class TestSizes:
    @pytest.mark.parametrize(
        ("pool", "expected"),
        [
            ({"pool_size": 1}, ["W010"]),
            ({"pool_size": 4, "max_overflow": 10}, []),  # it is meant
            ({"pool_size": 1, "max_overflow": 0}, []),
            ({"pool_size": 5}, []),
            ({"max_overflow": 3}, []),
            ({"pool_size": 0}, ["W011"]),
            ({"pool_size": 0, "max_overflow": 4}, ["W011"]),
            ({"pool_size": 0, "max_overflow": -1}, []),
            ({"pool_class": "NullPool"}, []),
            (True, []),
            ({"min_idle": 16}, ["W016"]),
            ({"min_idle": 15}, []),
            ({"min_idle": 16, "max_overflow": 11}, []),
            ({"min_idle": 16, "pool_size": 2}, ["W016", "W010"]),
            ({"min_idle": 16, "max_overflow": -1}, []),
            ({"min_idle": 16, "pool_size": 0}, ["W011"]),
        ],
    )
    def test_a_size_that_is_another_limit_than_it_seems(self, make_alias, pool, expected):
        assert told(make_alias(pool=pool).alias, tags=["compatibility"]) == expected

    def test_the_numbers(self, make_alias):
        alias = make_alias(pool={"pool_size": 1}).alias
        (message,) = (m for m in run_checks(tags=["compatibility"]) if f"'{alias}'" in m.msg)
        cap = connections[alias].pool.status()["cap"]
        assert f"may have {cap} connections, though pool_size is 1." in message.msg
        defaults = [inspect.signature(SlotPool).parameters[name].default for name in ("pool_size", "max_overflow")]
        assert defaults == [DEFAULT_SIZE, DEFAULT_OVERFLOW]

    def test_arguments_count_too(self):
        del connections["default"]
        with override_settings(MYSQLPOOL_ARGUMENTS={"pool_size": 2}):
            assert told("default", tags=["compatibility"]) == ["W010"]
        del connections["default"]


class TestPoolClasses:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("StaticPool", ["W012"]),
            ("SingletonThreadPool", ["W012"]),
            ("AssertionPool", ["W012"]),
            ("tests.helpers.CustomPool", []),
            ("NullPool", []),
            ("QueuePool", []),
        ],
    )
    def test_those_that_threads_cannot_share(self, make_alias, name, expected):
        assert told(make_alias(pool={"pool_class": name}).alias, tags=["compatibility"]) == expected

    def test_they_are_right_where_nothing_serves_requests(self, make_alias):
        alias = make_alias(pool={"pool_class": "StaticPool"}).alias
        with override_settings(MIDDLEWARE=[], ROOT_URLCONF=None):
            assert told(alias, tags=["compatibility"]) == []

    def test_a_server_logs_it_when_it_starts(self, make_alias, caplog):
        alias = make_alias(pool={"pool_class": "StaticPool"}).alias
        ConnectionReleaseMiddleware(lambda request: None)
        assert f"The pool of the database alias '{alias}' is a StaticPool" in caplog.text

    def test_unless_it_is_silenced(self, make_alias, caplog):
        make_alias(pool={"pool_class": "StaticPool"})
        with override_settings(SILENCED_SYSTEM_CHECKS=["django_mysqlpool.W012"]):
            ConnectionReleaseMiddleware(lambda request: None)
        assert caplog.text == ""


class TestTheWrapperForASGI:
    """Both the check W013, and the middleware's warning where no setting names the application."""

    @pytest.fixture(autouse=True)
    def no_wrappers_yet(self):
        others = list(asgi_wrappers)
        asgi_wrappers.clear()
        yield
        asgi_wrappers.update(others)

    @pytest.fixture
    def site(self, monkeypatch):
        """Has ASGI_APPLICATION name a module with the given application."""
        module = ModuleType("an_asgi_site")
        monkeypatch.setitem(sys.modules, "an_asgi_site", module)
        with override_settings(ASGI_APPLICATION="an_asgi_site.application"):
            yield module

    @staticmethod
    def ids() -> list[str]:
        return [m.id for m in run_checks(tags=["compatibility"]) if m.id.startswith("django_mysqlpool")]

    def test_it_is_missing(self, site):
        site.application = get_asgi_application()
        assert self.ids() == ["django_mysqlpool.W013"]

    def test_it_is_there(self, site):
        site.application = ConnectionReleaseASGI(get_asgi_application())
        assert self.ids() == []

    def test_it_is_somewhere_inside(self, site):
        wrapped = ConnectionReleaseASGI(get_asgi_application())

        async def outer(scope, receive, send):
            await wrapped(scope, receive, send)

        site.application = outer
        assert self.ids() == []

    def test_an_application_that_cannot_be_imported_is_the_servers_to_tell(self, site):
        assert self.ids() == []

    @staticmethod
    def request(application) -> None:
        async def run() -> None:
            scope = {"type": "http", "method": "GET", "path": "/count/", "headers": [], "query_string": b""}
            communicator = ApplicationCommunicator(application, scope)
            await communicator.send_input({"type": "http.request", "body": b""})
            assert (await communicator.receive_output(30))["status"] == 200
            await communicator.receive_output(30)
            await communicator.wait(30)

        asyncio.run(run())

    def test_the_first_request_shows_that_it_is_missing(self, caplog):
        application = get_asgi_application()
        for _ in range(2):
            self.request(application)
        assert caplog.text.count("The ASGI application is not wrapped in ConnectionReleaseASGI") == 1

    def test_or_that_it_is_there(self, caplog):
        application = ConnectionReleaseASGI(get_asgi_application(), replace_receivers=False)
        self.request(application)
        application.threads.close()
        assert "not wrapped" not in caplog.text

    def test_the_test_client_needs_none(self, caplog):
        async def run() -> None:
            assert (await AsyncClient().get("/count/")).status_code == 200

        asyncio.run(run())
        assert "not wrapped" not in caplog.text


class TestLimits:
    def test_the_accounts(self, make_alias):
        alias = make_alias(at_most=3, pool={"pool_size": 4, "max_overflow": 1}).alias
        (message,) = of_database(alias)
        assert message.id == "django_mysqlpool.W014"
        assert "is 5 connections; the server allows 3 (max_user_connections)." in message.msg

    def test_the_servers(self, make_alias):
        alias = make_alias(pool={"pool_size": 100_000, "max_overflow": 0}).alias
        (limit,) = fetch(connections[alias], "SELECT @@max_connections")[0]
        (message,) = of_database(alias)
        assert message.id == "django_mysqlpool.W014"
        assert f"is 100000 connections; the server allows {limit} (max_connections)." in message.msg

    @pytest.mark.parametrize(
        "pool",
        [{"pool_size": 3, "max_overflow": 0}, {"pool_size": 0}, {"pool_class": "NullPool"}, {"pool_class": "StaticPool"}],
    )
    def test_a_pool_that_stays_below_or_has_no_cap(self, make_alias, pool):
        assert of_database(make_alias(at_most=3, pool=pool).alias) == []

    def test_without_database_they_do_not_run(self, make_alias):
        alias = make_alias(at_most=3, pool={"pool_size": 5, "max_overflow": 0, "recycle": 10**6}).alias
        assert told(alias) == []


class TestRecycle:
    @pytest.mark.parametrize(("recycle", "expected"), [(10**6, ["W015"]), (60, []), (None, []), (-1, [])])
    def test_above_the_servers_wait_timeout(self, make_alias, recycle, expected):
        alias = make_alias(pool={"recycle": recycle}).alias
        messages = of_database(alias)
        assert [m.id.partition(".")[2] for m in messages] == expected
        (timeout,) = fetch(connections[alias], "SELECT @@wait_timeout")[0]
        assert all(f"is 1000000 s, and the server ends a session that was idle for {timeout} s" in m.msg for m in messages)


class TestEncryption:
    """Connector/C connects in clear text if the server has no TLS, whatever ``ssl_mode`` says."""

    @mysqlclient_only("ssl_mode is its")
    def test_a_server_without_tls(self, make_alias, server, observer):
        has_tls = not server.is_mariadb or observer.query("SELECT @@have_ssl") == [("YES",)]
        alias = make_alias(options={"ssl_mode": "REQUIRED"}).alias
        assert [m.id for m in of_database(alias)] == ([] if has_tls else ["django_mysqlpool.E005"])

    @pytest.mark.parametrize(
        ("options", "asked"),
        [
            ({"ssl_mode": "REQUIRED"}, "['ssl_mode'] is REQUIRED"),
            ({"ssl_mode": "verify_ca"}, "['ssl_mode'] is VERIFY_CA"),
            ({"ssl": {"ca": "/ca.pem"}}, "['ssl'] is set"),
            ({"ssl_verify_cert": True}, "['ssl_verify_cert'] is set"),
            ({"ssl": {"ca": "/ca.pem"}, "ssl_mode": "PREFERRED"}, None),
            ({"ssl_mode": "DISABLED"}, None),
            ({"ssl": None}, None),
        ],
    )
    def test_what_asks_for_it(self, make_alias, monkeypatch, options, asked):
        clear = {"ssl_mode": "DISABLED"} if DRIVER == "mysqlclient" else {"ssl_disabled": True}
        wrapper = make_alias(options=clear)
        wrapper.ensure_connection()
        monkeypatch.setitem(wrapper.settings_dict, "OPTIONS", options)
        messages = of_database(wrapper.alias)
        if asked is None:
            assert messages == []
            return
        (message,) = messages
        assert message.id == "django_mysqlpool.E005"
        assert message.msg.endswith(f"is not encrypted, though OPTIONS{asked}.")
