"""Django's own receivers of a request's signals: put aside as long as they have nothing to do, and never missed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, connection, connections, reset_queries, transaction
from django.db.backends.signals import connection_created
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from django_mysqlpool import hold_connection, pool_status
from django_mysqlpool.middleware import ConnectionReleaseASGI, ConnectionReleaseMiddleware, ConnectionReleaseWSGI
from django_mysqlpool.mysqlpool.backend.receivers import receivers
from django_mysqlpool.threading_utils import auto_close_db
from tests.helpers import ask
from tests.hops import CountingLoop, request
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.mode, pytest.mark.usefixtures("djangos_receivers")]

OURS = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
DJANGOS = [
    (request_started, reset_queries),
    (request_started, close_old_connections),
    (request_finished, close_old_connections),
]


def connected() -> list[Any]:
    """Those of Django's that are connected, where they stand among all."""
    return [
        (signal, receiver)
        for signal in (request_started, request_finished)
        for receiver in signal._live_receivers(None)[0]
        if receiver in {reset_queries, close_old_connections}
    ]


def out() -> int:
    return sum(status["out"] for status in pool_status().values())


def query() -> None:
    Account.objects.count()


def query_in_a_thread() -> None:
    """Have a thread take a connection in no scope, and close it."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(query).result()
        thread.submit(connections.close_all).result()


@pytest.fixture(autouse=True)
def no_habit() -> Iterator[None]:
    yield
    global habit
    habit = Nothing()


class Habit:
    """What a project does with each request. The tests' view and middleware call it."""

    #: There is something to do for Django's receivers.
    wants_them = True
    middleware = (OURS,)

    def before(self) -> None: ...
    def view(self) -> None: ...
    def chunks(self) -> Iterator[bytes] | None: ...
    def at_close(self) -> None: ...
    def after(self) -> None: ...
    def at_start(self) -> None: ...
    def at_finish(self) -> None: ...


habit = Habit()


def view(http_request):
    query()
    habit.view()
    chunks = habit.chunks()
    response = HttpResponse(f"{out()}") if chunks is None else StreamingHttpResponse(chunks)
    if type(habit).at_close is not Habit.at_close:
        response._resource_closers.append(habit.at_close)
    return response


urlpatterns = [path("", view)]


class Outer:
    """A project's middleware that stands before the package's."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, http_request: Any) -> Any:
        habit.before()
        response = self.get_response(http_request)
        habit.after()
        return response


class Nothing(Habit):
    wants_them = False


class QueriesBeforeTheMiddleware(Habit):
    middleware = (f"{__name__}.Outer", OURS)

    def before(self) -> None:
        query()


class QueriesAfterTheMiddleware(QueriesBeforeTheMiddleware):
    def before(self) -> None: ...

    def after(self) -> None:
        query()


class QueriesAsTheResponseIsClosed(Habit):
    def at_close(self) -> None:
        query()


class QueriesAtTheStart(Habit):
    def at_start(self) -> None:
        query()


class QueriesAtTheFinish(Habit):
    def at_finish(self) -> None:
        query()


class SetsTheSessionUpAtTheStart(Habit):
    """For the view: nothing may be closed in between."""

    def at_start(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET @tenant = 7")

    def view(self) -> None:
        trace.append(ask(connection, "SELECT @tenant"))


class LeavesATransactionOpenAtTheFinish(Habit):
    """Before its first statement, which is no checkout in transaction mode."""

    def at_finish(self) -> None:
        transaction.set_autocommit(False)

    def at_start(self) -> None:
        trace.append(connection.get_autocommit())


class LogsQueries(Habit):
    """As some profilers do."""

    def view(self) -> None:
        connection.force_debug_cursor = True
        query()
        trace.append(len(connection.queries))


class LogsQueriesInAStream(Habit):
    """After the middleware has passed the response on."""

    def view(self) -> None:
        trace.append(len(connection.queries))

    def chunks(self) -> Iterator[bytes]:
        connection.force_debug_cursor = True
        query()
        yield b"1"


class AddsAnAliasThatIsNotPooled(Habit):
    def __init__(self, make_alias: Any) -> None:
        self.alias = make_alias(pool=False).alias

    def view(self) -> None:
        connections.settings[self.alias] = self.settings
        ask(connections[self.alias], "SELECT 1")

    def at_start(self) -> None:
        if self.alias in connections.settings:
            trace.append(connections[self.alias].connection is None)

    def __enter__(self) -> None:
        self.settings = connections.settings.pop(self.alias)

    def __exit__(self, *_: object) -> None:
        connections.settings[self.alias] = self.settings


HABITS = [*Habit.__subclasses__(), QueriesAfterTheMiddleware]
HABITS.remove(AddsAnAliasThatIsNotPooled)
#: Receivers of signals, which these need, have their change of threads under ASGI.
ASGI_HABITS = [kind for kind in HABITS if (kind.at_start, kind.at_finish) == (Habit.at_start, Habit.at_finish)]
trace: list[Any] = []


@contextmanager
def probes() -> Iterator[None]:
    """Note what is out whenever Django's receivers have had their turn, and have the habit follow them."""

    def at_start(**_: Any) -> None:
        trace.append(("start", out()))
        habit.at_start()

    def at_finish(**_: Any) -> None:
        trace.append(("finish", out()))
        habit.at_finish()

    request_started.connect(at_start)
    request_finished.connect(at_finish)
    try:
        yield
    finally:
        request_started.disconnect(at_start)
        request_finished.disconnect(at_finish)


def serve(application: Any) -> None:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    answer = application(environ, lambda status, headers: trace.append(status))
    trace.append(b"".join(answer))
    answer.close()
    trace.append(("closed", out()))


def traced(chosen: Habit, replace: bool, number: int = 4) -> list[Any]:
    """Serve requests of a project with a habit in one thread; what was out when."""
    global habit
    habit = chosen
    trace.clear()
    settings = {"ROOT_URLCONF": __name__, "MIDDLEWARE": chosen.middleware, "MYSQLPOOL_REPLACE_RECEIVERS": replace}
    with override_settings(**settings), probes(), ThreadPoolExecutor(1) as thread:
        application = get_wsgi_application()
        for _ in range(number):
            thread.submit(serve, application).result()
        thread.submit(connections.close_all).result()
    return trace.copy()


def traced_by_asgi(chosen: Habit, replace: bool, number: int = 4) -> list[Any]:
    """Serve requests of a project with a habit in one warm thread; what was out when."""
    global habit
    habit = chosen
    trace.clear()
    loop = CountingLoop()
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=chosen.middleware), ExitStack() as stack:
        stack.callback(loop.close)
        wrapped = ConnectionReleaseASGI(get_asgi_application(), threads=1, replace_receivers=replace)
        stack.callback(wrapped.threads.close)
        for _ in range(number):
            request(loop, wrapped, "/")
            trace.append(("closed", out()))
    return trace.copy()


class TestLikeStock:
    """Each connection returns when it does with Django's receivers, and the log and the sessions are the same."""

    @pytest.mark.parametrize("kind", HABITS, ids=lambda kind: kind.__name__)
    def test_a_habit(self, kind, restore_receivers):
        stock = traced(kind(), replace=False)
        assert connected() == DJANGOS
        restore_receivers()
        ours = traced(kind(), replace=True)
        assert ours == stock
        assert connected() == (DJANGOS if kind.wants_them else [])

    def test_an_alias_that_is_not_pooled(self, make_alias, restore_receivers):
        habit = AddsAnAliasThatIsNotPooled(make_alias)
        with habit:
            stock = traced(habit, replace=False)
        restore_receivers()
        with habit:
            assert traced(habit, replace=True) == stock
        assert connected() == DJANGOS


def first_request(**settings: Any) -> None:
    """Serve one request of a project that does nothing special."""
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS], **settings):
        serve(get_wsgi_application())


class TestFirstRequest:
    """Django's WSGI handler has served its first request, and the receivers are aside if they have nothing to do."""

    def test_they_are_put_aside(self):
        first_request()
        assert connected() == []

    @pytest.mark.parametrize("setting", [{"MYSQLPOOL_REPLACE_RECEIVERS": False}, {"DEBUG": True}], ids=str)
    def test_a_setting_keeps_them(self, setting):
        first_request(**setting)
        assert connected() == DJANGOS

    @pytest.mark.parametrize("value", ["no", 0, None])
    def test_a_wrong_setting_is_refused_when_the_server_starts(self, value):
        with pytest.raises(
            ImproperlyConfigured, match=f"MYSQLPOOL_REPLACE_RECEIVERS is {value!r}; it must be True or False"
        ):
            first_request(MYSQLPOOL_REPLACE_RECEIVERS=value)

    def test_an_alias_that_is_not_pooled_keeps_them(self, make_alias):
        make_alias(pool=False)
        first_request()
        assert connected() == DJANGOS

    def test_so_does_one_whose_engine_can_not_be_found(self, make_alias):
        alias = make_alias().alias
        connections.settings[alias]["ENGINE"] = "shop.no_engine"
        first_request()
        assert connected() == DJANGOS

    def test_a_scope_around_it_keeps_them(self):
        with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
            serve(ConnectionReleaseWSGI(get_wsgi_application()))
        assert connected() == DJANGOS

    def test_a_connection_that_another_thread_has_keeps_them(self):
        with ThreadPoolExecutor(1) as thread, transaction.atomic():
            query()
            thread.submit(first_request).result()
        assert connected() == DJANGOS

    def test_one_that_a_thread_has_in_a_scope_does_not(self):
        def in_scope(http_request):
            query()
            with ThreadPoolExecutor(1) as thread:
                thread.submit(first_request).result()
            return HttpResponse()

        ConnectionReleaseMiddleware(in_scope)(RequestFactory().get("/"))
        assert connected() == []

    def test_nor_does_one_that_is_just_being_taken_in_a_scope(self, make_alias):
        """Django sends ``connection_created`` before the lease is counted to its scope."""

        def serve_another(connection, **named):
            if connection.alias == alias:
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(first_request).result()

        alias = make_alias().alias
        connection_created.connect(serve_another)
        try:
            auto_close_db(ask)(connections[alias], "SELECT 1")
        finally:
            connection_created.disconnect(serve_another)
        assert connected() == []

    def test_one_that_is_taken_meanwhile_has_them_back(self, monkeypatch):
        """After the last is disconnected, before the look at what is out."""
        disconnect = request_finished.disconnect

        def disconnect_and_query(receiver):
            was_connected = disconnect(receiver)
            query_in_a_thread()
            return was_connected

        monkeypatch.setattr(request_finished, "disconnect", disconnect_and_query)
        first_request()
        assert connected() == DJANGOS

    def test_one_that_is_taken_between_two_of_them_has_them_back(self, monkeypatch):
        disconnect = request_started.disconnect

        def query_and_disconnect(receiver, *arguments):
            query_in_a_thread()
            return disconnect(receiver, *arguments)

        monkeypatch.setattr(request_started, "disconnect", query_and_disconnect)
        first_request()
        assert connected() == DJANGOS

    def test_the_test_client_keeps_them(self):
        with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
            assert Client().get("/").status_code == 200
        assert set(connected()) == set(DJANGOS)

    def test_one_that_was_disconnected_stays_so(self):
        request_started.disconnect(reset_queries)
        first_request()
        query()
        assert connected() == DJANGOS[1:]

    def test_others_stay(self):
        seen = []

        def receiver(sender, **named):
            seen.append(sender)

        request_started.connect(receiver)
        request_finished.connect(receiver)
        first_request()
        first_request()
        assert len(seen) == 4


class TestPutBack:
    def test_for_good(self):
        first_request()
        query()
        assert connected() == DJANGOS
        connection.close()
        first_request()
        assert connected() == DJANGOS

    def test_for_another_threads_query(self):
        first_request()
        query_in_a_thread()
        assert connected() == DJANGOS

    @pytest.mark.parametrize("signal", [request_started, request_finished])
    def test_later_if_a_signal_is_just_being_sent(self, signal):
        """The garbage collector may have a generator ask, in the thread that holds the signal's lock."""
        first_request()
        with signal.lock:
            query()
        assert connected() == []
        connection.close()
        first_request()
        assert connected() == DJANGOS

    def test_at_once_if_another_thread_is_just_sending(self, monkeypatch):
        class Held:
            """A lock that another thread holds until this one wants it."""

            def __init__(self) -> None:
                self.lock, self.is_wanted = threading.Lock(), threading.Event()
                self.release, self.locked = self.lock.release, self.lock.locked

            def acquire(self, *arguments, **named):
                self.is_wanted.set()
                return self.lock.acquire(*arguments, **named)

            def __enter__(self):
                self.acquire()

            def __exit__(self, *_):
                self.release()

        first_request()
        held = Held()
        held.lock.acquire()
        monkeypatch.setattr(request_started, "lock", held)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: held.is_wanted.wait() and held.release())
            query()
        assert connected() == DJANGOS

    @pytest.mark.parametrize("served", ["WSGI", "ASGI"])
    def test_the_queries_of_a_test_are_counted_over_its_requests(self, served):
        first_request() if served == "WSGI" else ConnectionReleaseASGI(get_asgi_application())
        with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]), CaptureQueriesContext(connection) as queries:
            Client().get("/")
            Client().get("/")
        assert len(queries) == 2


@pytest.mark.asgiref
class TestASGI:
    """Those of ``request_started`` cost a change of threads, and so does ``response.close()`` if the other one is there."""

    @pytest.fixture
    def hops(self) -> Iterator[Callable[..., list[str]]]:
        with ExitStack() as stack:
            stack.enter_context(override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]))

            def hops(wrapped: Any) -> list[str]:
                stack.callback(wrapped.threads.close)
                loop = CountingLoop()
                request(loop, wrapped, "/")
                loop.close()
                return loop.calls

            yield hops

    def make(self, **arguments: Any) -> ConnectionReleaseASGI:
        return ConnectionReleaseASGI(get_asgi_application(), **arguments)

    def test_made_once_or_twice(self, hops):
        self.make()
        wrapped = self.make()
        assert connected() == []
        assert hops(wrapped) == ["view"]

    def test_an_argument_keeps_them(self, hops):
        wrapped = self.make(replace_receivers=False)
        assert connected() == DJANGOS
        assert hops(wrapped) == ["Signal.asend", "view", "HttpResponseBase.close"]

    def test_debug_keeps_them(self):
        with override_settings(DEBUG=True):
            self.make()
        assert connected() == DJANGOS
        assert not receivers.are_aside

    def test_an_alias_that_is_not_pooled_keeps_them(self, make_alias):
        make_alias(pool=False)
        self.make()
        assert connected() == DJANGOS
        assert not receivers.are_aside

    def test_one_that_is_added_has_them_back_for_the_next_request(self, hops, make_alias):
        wrapped = self.make()
        make_alias()
        assert hops(wrapped) == ["view"]
        make_alias(pool=False)
        assert hops(wrapped) == ["Signal.asend", "view", "HttpResponseBase.close"]
        assert connected() == DJANGOS

    def test_a_query_that_is_logged_has_them_back(self, hops):
        """The threads are warm, and the log would grow."""
        global habit
        habit = LogsQueries()
        logged = []
        for replaces in (False, True):
            wrapped = self.make(threads=1, replace_receivers=replaces)
            trace.clear()
            for _ in range(3):
                hops(wrapped)
            logged.append(trace.copy())
        assert logged[0] == logged[1]

    def test_a_query_in_no_scope_has_that_of_the_end_back(self, hops):
        """A background task's is not the request's thread's; but that may be."""
        wrapped = self.make()
        query()
        assert connected() == DJANGOS[2:]
        connection.close()
        self.make()
        assert connected() == DJANGOS[2:]
        assert hops(wrapped) == ["view", "HttpResponseBase.close"]

    def test_so_does_one_that_is_taken_meanwhile(self, monkeypatch):
        disconnect = request_finished.disconnect

        def query_and_disconnect(receiver):
            query_in_a_thread()
            return disconnect(receiver)

        monkeypatch.setattr(request_finished, "disconnect", query_and_disconnect)
        self.make()
        assert connected() == DJANGOS[2:]

    def test_and_one_that_is_out_before(self):
        with hold_connection():
            query()
            self.make()
        assert connected() == DJANGOS[2:]

    def test_with_the_next_request_if_a_signal_is_just_being_sent(self, hops):
        wrapped = self.make()
        with request_finished.lock:
            query()
        assert connected() == []
        connection.close()
        assert hops(wrapped) == ["view", "HttpResponseBase.close"]
        assert connected() == DJANGOS[2:]

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
    @pytest.mark.parametrize("kind", ASGI_HABITS, ids=lambda kind: kind.__name__)
    def test_a_habit(self, kind, restore_receivers):
        """Each connection returns when it does with Django's receivers, and the log and the sessions are the same."""
        stock = traced_by_asgi(kind(), replace=False)
        restore_receivers()
        assert traced_by_asgi(kind(), replace=True) == stock

    def test_another_handler_in_the_process_has_all_put_aside_and_back(self):
        self.make()
        first_request()
        assert connected() == []
        query()
        assert connected() == DJANGOS
        self.make()
        assert connected() == DJANGOS
        assert not receivers.are_aside
