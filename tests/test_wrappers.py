"""``ConnectionReleaseWSGI`` and ``ConnectionReleaseASGI`` by the letter of PEP 3333 and of the ASGI specification."""

from __future__ import annotations

import asyncio
import contextvars
import io
import threading
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished, request_started
from django.db import connection, connections

from django_mysqlpool import pool_status
from django_mysqlpool.middleware import ConnectionReleaseASGI, ConnectionReleaseWSGI
from django_mysqlpool.mysqlpool.backend.scope import Scope
from tests.helpers import eventually, status_of
from tests.hops import CountingLoop, request
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode]


def out() -> int:
    return sum(status["out"] for status in pool_status().values())


def environ(**values):
    from wsgiref.util import setup_testing_defaults

    environ = {"wsgi.file_wrapper": FileWrapper, "QUERY_STRING": "", **values}
    setup_testing_defaults(environ)
    return environ


def call(application, **values):
    """Call a WSGI application as a server does; its iterable, and what it wrote."""
    written = []

    def start_response(status, headers, exc_info=None):
        return written.append

    return ConnectionReleaseWSGI(application)(environ(**values), start_response), written


class Answer:
    """An iterable that asks the database for each chunk, and when it is closed."""

    def __init__(self):
        self.is_closed = False

    def __iter__(self):
        for _ in range(2):
            yield str(Account.objects.count()).encode()

    def close(self):
        Account.objects.count()
        self.is_closed = True


class TestWSGI:
    def test_the_specification_is_kept(self):
        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Answer()

        checked = validator(ConnectionReleaseWSGI(validator(application)))
        answer = checked(environ(), lambda status, headers, exc_info=None: lambda data: None)
        assert b"".join(answer).isdigit()
        answer.close()
        assert out() == 0

    def test_an_iterable_is_released_between_chunks_and_at_its_close(self):
        inner = Answer()
        answer, _ = call(lambda environ, start_response: inner)
        for chunk in answer:
            assert chunk.isdigit()
            assert out() == 0
        answer.close()
        assert inner.is_closed
        assert out() == 0

    def test_a_transaction_over_the_chunks_goes_on_until_the_close(self):
        def application(environ, start_response):
            connection.set_autocommit(False)
            Account.objects.create(name="in the stream")
            yield b"1"
            assert Account.objects.filter(name="in the stream").exists()
            yield b"2"

        answer, _ = call(application)
        assert list(answer) == [b"1", b"2"]
        assert out() == 1
        answer.close()
        assert out() == 0
        assert not Account.objects.filter(name="in the stream").exists()

    def test_a_list_is_passed_on_as_it_is(self):
        def application(environ, start_response):
            return [str(Account.objects.count()).encode()]

        answer, _ = call(application)
        assert type(answer) is list  # its length tells a server the Content-Length
        assert out() == 0

    def test_so_is_the_servers_file_wrapper(self):
        def application(environ, start_response):
            Account.objects.count()
            return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

        answer, _ = call(application)
        assert type(answer) is FileWrapper
        assert out() == 0

    def test_so_is_that_of_a_server_whose_wrapper_is_a_function(self):
        made = []

        def wrapper(file):  # as uWSGI's: known to the server by what it returned
            made.append(FileWrapper(file))
            return made[-1]

        def application(environ, start_response):
            Account.objects.count()
            return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

        answer, _ = call(application, **{"wsgi.file_wrapper": wrapper})
        assert answer is made[0]
        assert out() == 0

    def test_write_is_the_servers(self):
        def application(environ, start_response):
            write = start_response("200 OK", [])
            write(str(Account.objects.count()).encode())
            return []

        _, written = call(application)
        assert written[0].isdigit()
        assert out() == 0

    def test_an_application_that_raises_gives_back(self):
        def application(environ, start_response):
            connection.set_autocommit(False)
            Account.objects.count()
            raise LookupError

        with pytest.raises(LookupError):
            call(application)
        assert out() == 0

    def test_an_iterable_that_raises_gives_back_at_its_close(self):
        def application(environ, start_response):
            Account.objects.count()
            yield b"1"
            raise LookupError

        answer, _ = call(application)
        assert next(answer) == b"1"
        with pytest.raises(LookupError):
            next(answer)
        answer.close()
        assert out() == 0


async def serve(application, scope, *messages):
    """Let an ASGI application have messages; what it sent."""
    sent = []
    queue = list(messages)

    async def receive():
        if not queue:
            await asyncio.Event().wait()
        return queue.pop(0)

    async def send(message):
        sent.append(message["type"])

    await application(scope, receive, send)
    return sent


def lifespan(application):
    wrapped = ConnectionReleaseASGI(application, threads=2)
    return asyncio.run(serve(wrapped, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))


class TestLifespan:
    def test_it_is_answered_where_the_application_knows_none(self):
        async def application(scope, receive, send):
            raise ValueError("Django can only handle ASGI/HTTP connections")

        assert lifespan(application) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    def test_it_is_the_applications_where_it_knows_one(self):
        seen = []

        async def application(scope, receive, send):
            for name in ("startup", "shutdown"):
                seen.append((await receive())["type"])
                await send({"type": f"lifespan.{name}.complete"})

        assert lifespan(application) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert seen == ["lifespan.startup", "lifespan.shutdown"]

    def test_an_error_of_an_application_that_knows_it_is_the_servers_to_see(self):
        async def application(scope, receive, send):
            await receive()
            raise LookupError

        with pytest.raises(LookupError):
            lifespan(application)

    def test_shutdown_closes_pools_and_ends_threads(self):
        async def application(scope, receive, send):
            raise ValueError

        connection.ensure_connection()
        connections.close_all()
        before = threading.active_count()
        lifespan(application)
        assert sum(status["open"] for status in pool_status().values()) == 0
        eventually(threading.active_count, lambda count: count <= before)


class TestASGI:
    def test_websockets_pass_through(self):
        async def application(scope, receive, send):
            await send({"type": "websocket.accept"})

        assert asyncio.run(serve(ConnectionReleaseASGI(application), {"type": "websocket"})) == ["websocket.accept"]

    @pytest.mark.parametrize("threads", [0, -1, "4", None])
    def test_threads_is_checked_at_once(self, threads):
        with pytest.raises(ValueError, match="must be a whole number, 1 or more"):
            ConnectionReleaseASGI(None, threads=threads)

    def test_requests_share_warm_threads_in_their_order(self):
        seen, order = set(), []

        async def application(scope, receive, send):
            def work():
                seen.add(threading.current_thread())
                order.append(scope["number"])
                return Account.objects.count()

            await sync_to_async(work)()
            await sync_to_async(work)()

        async def storm():
            wrapped = ConnectionReleaseASGI(application, threads=1)
            await asyncio.gather(*(serve(wrapped, {"type": "http", "number": n}) for n in range(20)))
            wrapped.threads.close()

        asyncio.run(storm())
        assert len(seen) == 1
        # One thread: each request had it for both its calls, first come first served.
        assert order == [n for n in range(20) for _ in range(2)]
        assert out() == 0

    def test_a_cancelled_request_leaks_nothing(self):
        started = threading.Event()

        async def application(scope, receive, send):
            def work():
                with connection.cursor() as cursor:
                    started.set()
                    cursor.execute("SELECT SLEEP(0.2)")
                    cursor.execute("SELECT 42")
                    return cursor.fetchone()

            await sync_to_async(work)()

        async def cancel():
            wrapped = ConnectionReleaseASGI(application, threads=1)
            for _ in range(3):
                started.clear()
                task = asyncio.create_task(serve(wrapped, {"type": "http"}))
                await asyncio.to_thread(started.wait)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            eventually(out, lambda number: number == 0)
            wrapped.threads.close()

        asyncio.run(cancel())

    def test_a_dirty_connection_of_a_thread_that_was_not_lent_goes_back_too(self):
        def work():
            with connection.cursor() as cursor:
                cursor.execute("SET @a = 1")

        async def application(scope, receive, send):
            await asyncio.to_thread(work)
            raise LookupError

        async def request():
            wrapped = ConnectionReleaseASGI(application, threads=1)
            with pytest.raises(LookupError):
                await serve(wrapped, {"type": "http"})
            await asyncio.to_thread(eventually, out, lambda number: number == 0)
            wrapped.threads.close()

        asyncio.run(request())

    def test_no_request_runs_in_the_open_transaction_of_another(self):
        """A stream's transaction stays with its thread; so the next request waits for another thread."""
        seen = {}

        async def application(scope, receive, send):
            def begin():
                connection.set_autocommit(False)
                Account.objects.create(name="uncommitted")

            def look():
                seen["autocommit"] = connection.get_autocommit()
                seen["rows"] = Account.objects.filter(name="uncommitted").count()

            if scope["name"] == "stream":
                with Scope():  # as the middleware has it for a stream
                    await send({"type": "http.response.start"})
                    await sync_to_async(begin)()
                    await send({"type": "http.response.body", "more_body": True})
                    await scope["end"].wait()
            else:
                await sync_to_async(look)()

        async def both():
            wrapped = ConnectionReleaseASGI(application, threads=1)
            end = asyncio.Event()
            stream = asyncio.create_task(serve(wrapped, {"type": "http", "name": "stream", "end": end}))
            await asyncio.to_thread(eventually, out, lambda number: number == 1)
            request = asyncio.create_task(serve(wrapped, {"type": "http", "name": "request"}))
            await asyncio.sleep(0)
            assert not request.done()
            end.set()
            await asyncio.gather(stream, request)
            wrapped.threads.close()

        asyncio.run(both())
        assert seen == {"autocommit": True, "rows": 0}
        assert out() == 0


class TestARequestThatHasAConnection:
    """It waits for no thread: those that have them may wait for its connection, and so both would, until the timeout."""

    @pytest.fixture
    def ask(self, make_alias):
        alias = make_alias(pool={"pool_size": 1, "max_overflow": 0, "release": "request"}).alias

        def ask() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")

        ask.alias = alias
        return ask

    async def until_one_waits(self, ask):
        """Until somebody waits for the only connection."""
        await asyncio.to_thread(
            eventually, lambda: status_of(connections[ask.alias])["waiting"], lambda number: number == 1
        )

    def serve_all(self, application, *names):
        """Serve requests side by side; there is one thread, before and after."""

        async def serve_all():
            wrapped = ConnectionReleaseASGI(application, threads=1)
            await asyncio.gather(*(serve(wrapped, {"type": "http", "name": name}) for name in names))
            await asyncio.to_thread(eventually, lambda: len(wrapped.threads._all), lambda number: number == 1)
            wrapped.threads.close()

        asyncio.run(asyncio.wait_for(serve_all(), 25))
        assert out() == 0

    def test_before_it_needs_a_thread(self, ask):
        order = []
        holds = asyncio.Event()

        async def application(scope, receive, send):
            if scope["name"] == "holder":
                await asyncio.to_thread(ask)
                holds.set()
                await self.until_one_waits(ask)
                await sync_to_async(order.append)("holder")
            else:
                await holds.wait()
                await sync_to_async(ask)()  # in the one thread
                order.append("other")

        self.serve_all(application, "holder", "other")
        assert order == ["holder", "other"]

    def test_while_it_waits_for_a_thread(self, ask):
        order = []
        is_taken, go_on = threading.Event(), threading.Event()

        def take_thread() -> None:
            is_taken.set()
            assert go_on.wait(20)

        async def application(scope, receive, send):
            if scope["name"] == "holder":
                await asyncio.to_thread(is_taken.wait, 20)
                call = asyncio.ensure_future(sync_to_async(order.append)("holder"))
                await asyncio.sleep(0)
                await asyncio.to_thread(ask)
                await call
                go_on.set()
            else:
                await sync_to_async(take_thread)()
                order.append("other")

        self.serve_all(application, "holder", "other")
        assert order == ["holder", "other"]

    def test_its_end_too(self, ask):
        """What it has left in a thread of asyncio's is cleaned in a thread: the session is dirty."""
        holds = asyncio.Event()

        def set_variable() -> None:
            with connections[ask.alias].cursor() as cursor:
                cursor.execute("SET @left = 1")

        async def application(scope, receive, send):
            if scope["name"] == "holder":
                await asyncio.to_thread(set_variable)
                holds.set()
                await self.until_one_waits(ask)
            else:
                await holds.wait()
                await sync_to_async(ask)()

        self.serve_all(application, "holder", "other")


@pytest.mark.usefixtures("djangos_receivers")
@pytest.mark.parametrize(("path", "call"), [("/count/", "count"), ("/count-async/", "QuerySet.count")])
class TestHops:
    """What the event loop hands to a thread for one request."""

    def hops(self, path, **arguments):
        loop = CountingLoop()
        wrapped = ConnectionReleaseASGI(get_asgi_application(), **arguments)
        try:
            request(loop, wrapped, path)
        finally:
            wrapped.threads.close()
            loop.close()
        assert out() == 0
        return loop.calls

    def test_two_less_than_djangos(self, path, call):
        assert self.hops(path) == [call]

    def test_djangos_receivers_may_stay(self, path, call):
        assert self.hops(path, replace_receivers=False) == ["Signal.asend", call, "HttpResponseBase.close"]

    def test_others_receivers_stay(self, path, call):
        seen = []

        def receiver(sender, **named):
            seen.append(sender)

        request_started.connect(receiver)
        try:
            assert self.hops(path) == ["Signal.asend", call]
        finally:
            request_started.disconnect(receiver)
        assert len(seen) == 1

    def test_others_receivers_of_the_end_stay(self, path, call):
        seen = []

        def receiver(sender, **named):
            seen.append(threading.current_thread())

        request_finished.connect(receiver)
        try:
            assert self.hops(path) == [call, "HttpResponseBase.close"]
        finally:
            request_finished.disconnect(receiver)
        assert seen != [threading.main_thread()]
        assert len(seen) == 1


class TestOtherFrameworks:
    """The documentation's examples, as it shows them."""

    def test_starlette(self, serve):
        site = serve("starlette")
        assert site.storm([f"/{view}/" for view in ("count", "count_async", "to_thread")] * 50) == {200: 150}
        site.wait_until_none_is_out()

    def test_fastapi(self, serve):
        site = serve("fastapi")
        paths = ["/count/", "/count_async/", "/accounts/nobody/"]
        assert site.storm(paths * 50) == {200: 100, 404: 50}
        site.wait_until_none_is_out()

    def test_a_background_task_of_fastapis_gives_back(self, serve):
        site = serve("fastapi")
        assert site.client.post("/accounts/in-the-background/").status_code == 202
        eventually(lambda: site.get("/accounts/in-the-background/").status_code, lambda code: code == 200)
        site.wait_until_none_is_out()
        Account.objects.filter(name="in-the-background").delete()


class TestOtherWorkInTheSameThread:
    """What a thread still has of one piece of work, when it turns to another."""

    @pytest.fixture
    def left_open(self):
        """A scope that goes on, with a transaction open in this thread."""
        with Scope() as scope:
            connection.set_autocommit(False)
            Account.objects.create(name="left open")
        yield scope
        scope.end()

    def test_another_scope_finds_nothing_of_it(self, left_open):
        with Scope() as other:
            assert connection.connection is not None
            assert not Account.objects.filter(name="left open").exists()
            assert connection.get_autocommit()
        other.end()

    def test_a_part_of_it_shares_it(self, left_open):
        with left_open, Scope() as part:
            assert Account.objects.filter(name="left open").exists()
        part.end()
        with left_open:
            assert Account.objects.filter(name="left open").exists()

    def test_code_in_a_context_of_its_own_may_be_part_of_it(self, left_open):
        assert contextvars.Context().run(Account.objects.filter(name="left open").exists)
        with left_open:
            assert Account.objects.filter(name="left open").exists()

    def test_after_its_end_nothing_is_left(self, left_open):
        left_open.end()
        assert connection.connection is None
        assert not Account.objects.filter(name="left open").exists()
