"""The release of a request's connections, under real web servers and real clients."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack

import pytest
from django import urls
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, override_settings

from django_mysqlpool.middleware import ConnectionReleaseMiddleware
from django_mysqlpool.middleware import django as django_middleware
from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope, set_current_scope
from tests.helpers import RELEASE, backend_pid, eventually, status_of
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode, pytest.mark.slow]

WSGI = ["gunicorn", "gunicorn sync", "gunicorn preload", "gunicorn wrapped", "uwsgi", "uwsgi wrapped"]
ASGI = ["uvicorn", "uvicorn wrapped", "hypercorn wrapped"]
# The wrapped ones have no middleware: what they return is the wrapper's doing.
BARE = {"gunicorn wrapped", "uwsgi wrapped", "uvicorn wrapped", "hypercorn wrapped"}
VIEWS = {
    "/count/": 200,
    "/count-async/": 200,
    "/write/": 200,
    "/fail/": 500,
    "/fail-async/": 500,
    "/missing/": 404,
    "/leave-open/": 200,
    "/leave-atomic/": 200,
    "/leave-dirty/": 200,
    "/slow/": 200,
    "/slow-async/": 200,
    "/stream/": 200,
    "/stream-async/": 200,
    "/file/": 200,
    "/threads/": 200,
    "/threads-async-in-turn/": 200,
    "/executor/": 200,
}
# How many threads each may keep: gunicorn's and uWSGI's 16; asyncio's and asgiref's executors; ours, and the pool's one.
KEPT = {**dict.fromkeys(WSGI, 16 + 8), "gunicorn sync": 1, "uvicorn": 8, "uvicorn wrapped": 16, "hypercorn wrapped": 16}
CAP = {"pool_size": 4, "max_overflow": 1, "timeout": 60}
# What the views themselves put in the log, and what a server says of a client that left.
EXPECTED = re.compile(
    r"RuntimeError: the (view|stream) fails|BrokenPipeError|ConnectionResetError|OSError: write error$"
    # How Django finds out that a stream is of the other kind; it says so above the stream's own error.
    r"|requires an object with __aiter__|is not iterable"
)


def start(serve, kind, **arguments):
    environment = {"MYSQLPOOL_TEST_BARE": "1"} if kind in BARE else {}
    return serve(kind, **arguments, **environment)


@pytest.mark.parametrize("kind", WSGI + ASGI)
class TestUnder:
    def test_each_request_gives_back_what_it_took(self, serve, kind):
        site = start(serve, kind)
        for path, code in VIEWS.items():
            assert site.get(path).status_code == code, path
            if "threads" in path or kind in BARE:
                # Threads that outlive the request; a wrapper's request, which ends after its last byte.
                site.wait_until_none_is_out()
            assert site.out() == 0, path
        assert not Account.objects.filter(name="never committed").exists()

    def test_a_storm(self, serve, kind, observer):
        """A thousand requests of every awkward kind; a third of the clients hang up in the middle."""
        site = start(serve, kind, pool=CAP, at_most=5)
        before = len(site.status()["threads"])
        assert site.get("/count/").status_code == 200
        assert len(observer.connections_of(site.user)) == 1
        paths = [*VIEWS, "/stream-fails/", "/count/", "/count/"] * 50
        answers = site.storm(paths, leave=lambda number: number % 3 == 0)
        assert answers[0] == len(paths) // 3 + 1
        assert set(answers) <= {0, -1, 200, 404, 500}
        site.wait_until_none_is_out()
        # Perhaps none: where the account seemed full for a moment, the maintenance thread has made room for neighbours.
        assert len(observer.connections_of(site.user)) <= 5
        # In transaction mode /leave-dirty/ pins its connection: the storm was in the mode that it says.
        (pool,) = site.status()["pools"].values()
        assert ("SET" in pool["pins"]) == (RELEASE == "transaction")
        errors = {line for line in site.log.read_text().splitlines() if re.match(r"\S*(Error|Exception|Timeout)\b", line)}
        assert not {line for line in errors if not EXPECTED.search(line)}
        # A server keeps the threads that it has; what the storm added, a request's or a view's own, has ended.
        eventually(lambda: site.status()["threads"], lambda threads: len(threads) <= before + KEPT[kind])
        assert not Account.objects.filter(name="never committed").exists()


@pytest.mark.parametrize("kind", WSGI[:1] + ASGI)
class TestStreams:
    def test_a_client_that_does_not_read_holds_nothing(self, serve, kind):
        site = start(serve, kind)
        with ExitStack() as stack:
            for _ in range(5):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=60))
                connection.sendall(b"GET /stream/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(1)
            site.wait_until_none_is_out()
        site.wait_until_none_is_out()

    def test_a_stream_that_fails_gives_back(self, serve, kind):
        site = start(serve, kind)
        assert set(site.storm(["/stream-fails/"] * 10)) <= {200, -1, 500}
        site.wait_until_none_is_out()


@pytest.mark.parametrize("kind", ["gunicorn preload", "uwsgi"])
class TestForkedWorkers:
    def test_a_connection_of_the_masters_stays_the_masters(self, serve, kind, observer):
        """uWSGI forks in C and runs none of Python's hooks."""
        site = serve(kind, MYSQLPOOL_TEST_QUERY_FIRST="1")
        of_master = min(observer.connections_of(site.user))
        # More than it has threads, so that the one that forked has its turn as well.
        assert site.storm(["/count/", "/leave-dirty/", "/fail/"] * 40) == {200: 80, 500: 40}
        on_server = observer.connections_of(site.user)
        assert of_master in on_server
        assert len(on_server - {of_master}) == sum(pool["open"] for pool in site.status()["pools"].values())
        assert site.out() == 0


@pytest.mark.parametrize("kind", ["uvicorn wrapped"])
class TestIdleStreams:
    def test_they_keep_no_thread_and_no_connection(self, serve, kind):
        site = start(serve, kind, pool=CAP, at_most=5)
        with ExitStack() as stack:
            for _ in range(1000):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=60))
                connection.sendall(b"GET /events/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
                received = b""
                while b"data:" not in received:
                    chunk = connection.recv(1000)
                    assert chunk, f"the stream ended: {received!r}; {site.log.read_text()[-2000:]}"
                    received += chunk
            assert site.out() == 0
            assert site.storm(["/count/"] * 50) == {200: 50}
            assert site.out() == 0
            assert sum("mysqlpool-asgi" in name for name in site.status()["threads"]) <= 8
        site.wait_until_none_is_out()


class TestInsideTestCase(TestCase):
    """The test client runs the middleware in the test's own thread, inside the test's own transaction."""

    def test_what_the_test_holds_stays(self):
        account = Account.objects.create(name="of the test")
        assert Client().get("/count/").status_code == 200
        assert Account.objects.get(pk=account.pk).name == "of the test"


def test_the_test_client_leaves_a_connection_that_was_out_before(transactional_connection):
    with transactional_connection.cursor() as cursor:
        cursor.execute("SET @of_the_test = 5")
        assert Client().get("/write/").status_code == 200
        cursor.execute("SELECT @of_the_test")
        assert cursor.fetchone() == (5,)


class TestInThisThread:
    """What is out once the response is there, before any of Django's signals has closed anything."""

    @pytest.fixture
    def get(self):
        """Have a view answer one request."""

        def get(view, *middleware):
            urlconf = type("URLConf", (), {"urlpatterns": [urls.path("", view)]})
            with override_settings(ROOT_URLCONF=urlconf, MIDDLEWARE=[*settings.MIDDLEWARE, *middleware]):
                return Client(raise_request_exception=False).get("/").status_code

        return get

    @pytest.mark.parametrize("fails", [False, True])
    def test_atomic_requests(self, make_alias, get, fails):
        wrapper = make_alias(ATOMIC_REQUESTS=True)
        accounts = Account.objects.using(wrapper.alias).filter(name="of an atomic request")

        def view(request):
            accounts.create(name="of an atomic request")
            assert wrapper.in_atomic_block
            assert status_of(wrapper)["out"] == 1
            if fails:
                raise RuntimeError("the view fails")
            return HttpResponse("written")

        assert get(view) == (500 if fails else 200)
        assert status_of(wrapper)["out"] == 0
        assert accounts.delete()[0] == (0 if fails else 1)

    def test_an_interrupt_as_the_scope_is_set_leaves_the_outer_one(self, monkeypatch):
        interrupts = [KeyboardInterrupt]

        def set_and_be_interrupted(scope):
            token = set_current_scope(scope)
            if interrupts:
                raise interrupts.pop()
            return token

        monkeypatch.setattr(django_middleware, "set_current_scope", set_and_be_interrupted)
        with Scope() as outer:
            with pytest.raises(KeyboardInterrupt):
                ConnectionReleaseMiddleware(lambda request: HttpResponse())(HttpRequest())
            assert current_scope() is outer

    def test_a_middleware_that_raises(self, make_alias, get):
        wrapper = make_alias()
        assert get(lambda request: HttpResponse(backend_pid(wrapper)), f"{__name__}.{failing_middleware.__name__}") == 500
        assert status_of(wrapper)["out"] == 0
        assert status_of(wrapper)["open"] == 1

    def test_an_alias_that_is_not_pooled_is_left_as_it_is(self, make_alias, get):
        wrapper = make_alias(ENGINE="django.db.backends.mysql", CONN_MAX_AGE=None)
        pids = []
        for _ in range(2):
            assert get(lambda request: HttpResponse(pids.append(backend_pid(wrapper)))) == 200
        assert pids == [backend_pid(wrapper)] * 2


def failing_middleware(get_response):
    def respond(request):
        get_response(request)
        raise RuntimeError("the middleware fails")

    return respond


@pytest.fixture
def transactional_connection():
    from django.db import connection

    yield connection
    connection.close()


def test_shutdown_ends_threads_and_closes_pools(serve, observer):
    site = start(serve, "uvicorn wrapped")
    assert site.storm(["/count/"] * 50) == {200: 50}
    begin = time.monotonic()
    site.process.stop()
    assert time.monotonic() - begin < 30
    eventually(lambda: observer.connections_of(site.user), lambda ids: not ids)
    assert "Traceback" not in site.log.read_text()
