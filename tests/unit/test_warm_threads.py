"""A request's loan of a warm thread: what an event loop hands to it, and what it hears of it, in each order."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncRequestFactory

from django_mysqlpool.middleware.closes import idle_close
from django_mysqlpool.middleware.threads import Loan, WarmThread, WarmThreads
from django_mysqlpool.mysqlpool.backend.receivers import put_aside, receivers

pytestmark = [pytest.mark.unit, pytest.mark.django, pytest.mark.asgiref]

R = TypeVar("R")


@pytest.fixture
def threads() -> Iterator[WarmThreads]:
    threads = WarmThreads(1)
    yield threads
    threads.close()


@pytest.fixture
def lend(threads: WarmThreads) -> Callable[[], Loan]:
    return lambda: Loan(threads, must_stay=lambda _: False, has_connection=lambda: False)


@pytest.fixture
def loan(lend: Callable[[], Loan]) -> Iterator[Loan]:
    loan = lend()
    yield loan
    loan.finish(None)


@pytest.fixture
def told() -> list[dict[str, Any]]:
    """What an event loop complains of."""
    return []


def within(coroutine: Awaitable[R]) -> Awaitable[R]:
    return asyncio.wait_for(coroutine, 60)


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


class TestACall:
    def test_asyncio_takes_the_future_as_it_is(self, loan):
        made: list[Any] = []

        class Keeping:
            def submit(self, *args: Any) -> Any:
                made.append(loan.submit(*args))
                return made[0]

        async def ask() -> None:
            future = asyncio.get_running_loop().run_in_executor(Keeping(), threading.current_thread)  # type: ignore[arg-type]
            assert future is made[0]
            assert (await within(future)).name.startswith("mysqlpool-asgi")

        asyncio.run(ask())

    def test_the_thread_is_free_when_the_event_loop_hears_of_the_result(self, loan, threads):
        left: list[tuple[int, int]] = []

        class Loop(asyncio.SelectorEventLoop):
            def call_soon_threadsafe(self, *args: Any, **named: Any) -> Any:
                left.append((loan._calls, len(threads._idle)))
                return super().call_soon_threadsafe(*args, **named)

        async def ask() -> int:
            loan.share()
            return await within(loan.submit(lambda: 7))

        loop = Loop()
        assert loop.run_until_complete(ask()) == 7
        loop.close()
        assert left == [(0, 1)]

    def test_an_error_is_raised(self, loan):
        async def ask() -> None:
            with pytest.raises(ZeroDivisionError):
                await within(loan.submit(divmod, 1, 0))
            assert await within(loan.submit(divmod, 3, 2)) == (1, 1)

        asyncio.run(ask())

    def test_one_that_is_cancelled_before_it_begins_is_not_made(self, loan):
        may_end, made = threading.Event(), []

        async def ask() -> None:
            running, queued = loan.submit(may_end.wait), loan.submit(made.append, "cancelled")
            queued.cancel()
            may_end.set()
            await within(loan.submit(made.append, "after"))
            assert running.result()

        asyncio.run(ask())
        assert made == ["after"]

    @pytest.mark.parametrize("ends_with", ["a result", "an error"])
    def test_what_one_returns_that_was_cancelled_meanwhile_is_dropped(self, loan, told, ends_with):
        begun, may_end = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            may_end.wait(60)
            if ends_with == "an error":
                raise ValueError

        async def ask() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
            running = loan.submit(work)
            await within(asyncio.to_thread(begun.wait, 60))
            running.cancel()
            may_end.set()
            assert await within(loan.submit(lambda: "after")) == "after"
            assert running.cancelled()

        asyncio.run(ask())
        assert told == []

    def test_the_event_loop_may_be_closed_meanwhile(self, lend):
        begun, may_end = threading.Event(), threading.Event()
        left = lend()

        async def leave() -> None:
            left.submit(lambda: (begun.set(), may_end.wait(60)))
            await within(asyncio.to_thread(begun.wait, 60))

        asyncio.run(leave())
        left.finish(None)
        may_end.set()
        assert asyncio.run(within_loop(lend(), lambda: "served")) == "served"

    def test_a_thread_that_still_runs_is_not_lent_again(self, lend):
        release, order = threading.Event(), []
        first, second = lend(), lend()

        async def ask() -> None:
            running = first.submit(lambda: (release.wait(60), order.append("first")))
            first.finish(None)
            waiting = second.submit(lambda: order.append("second"))
            assert not waiting.done()
            release.set()
            await within(asyncio.gather(running, waiting))

        asyncio.run(ask())
        assert order == ["first", "second"]
        second.finish(None)


async def within_loop(loan: Loan, function: Callable[[], R]) -> R:
    """Make a call, and return the thread."""
    loan.share()
    return await within(loan.submit(function))


class TestOutOfThreads:
    """No thread can be started, or Python is shutting down."""

    def test_a_call_tells(self, lend, monkeypatch):
        made: list[str] = []
        loan = lend()

        async def ask() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await within(loan.submit(made.append, "refused"))
            # Once there are threads again, that one is not made after all.
            await within(loan.submit(made.append, "after"))

        asyncio.run(ask())
        assert made == ["after"]
        loan.finish(None)
        assert asyncio.run(within_loop(lend(), lambda: "served")) == "served"

    def test_a_call_that_has_waited_for_a_thread_tells(self, lend, monkeypatch):
        may_end, made = threading.Event(), []
        first, second = lend(), lend()

        async def ask() -> None:
            first.share()
            running = first.submit(may_end.wait)
            waiting = second.submit(made.append, "refused")
            with monkeypatch.context() as patch:
                patch.setattr(WarmThread, "submit", refuse)
                may_end.set()
                assert await within(running)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await within(waiting)

        asyncio.run(ask())
        assert made == []
        second.finish(None)
        assert asyncio.run(within_loop(lend(), lambda: "served")) == "served"

    def test_the_end_of_a_request_still_gives_back(self, lend, monkeypatch):
        """A request's loan takes a thread with its last call, perhaps."""
        done: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            lend().finish(partial(done.append, "returned"))
        assert done == ["returned"]
        # The one thread serves the next request, and does what the last one's asked for no second time.
        assert asyncio.run(within_loop(lend(), lambda: "served")) == "served"
        assert done == ["returned"]

    def test_so_does_an_end_that_has_waited_for_a_thread(self, lend, monkeypatch):
        may_end, done = threading.Event(), threading.Event()
        first, second = lend(), lend()

        async def ask() -> None:
            first.share()
            running = first.submit(may_end.wait)
            second.finish(done.set)
            assert not done.is_set()
            with monkeypatch.context() as patch:
                patch.setattr(WarmThread, "submit", refuse)
                may_end.set()
                assert await within(running)
                assert done.is_set()

        asyncio.run(ask())
        assert asyncio.run(within_loop(lend(), lambda: "served")) == "served"


class TestAThread:
    def test_survives_what_is_raised(self, caplog):
        thread, ended = WarmThread("mysqlpool-asgi-test"), threading.Event()
        thread.submit(partial(divmod, 1, 0))
        thread.submit(sys.exit)
        thread.submit(ended.set)
        assert ended.wait(60)
        assert [record.getMessage() for record in caplog.records] == ["A call in mysqlpool-asgi-test failed."] * 2
        thread.end()

    @pytest.mark.parametrize("how", ["told", "forgotten"])
    def test_ends(self, how):
        thread, threads = WarmThread("mysqlpool-asgi-test"), []
        thread.submit(lambda: threads.append(threading.current_thread()))
        if how == "told":
            thread.end()
        else:
            del thread
            gc.collect()
        while not threads:
            time.sleep(0.001)
        threads[0].join(60)
        assert not threads[0].is_alive()

    def test_keeps_nothing_of_a_call(self):
        class Subject:
            def call(self) -> None:
                pass

        thread, subject, done = WarmThread("mysqlpool-asgi-test"), Subject(), threading.Event()
        gone = threading.Event()
        weakref.finalize(subject, gone.set)
        thread.submit(subject.call)
        del subject
        assert gone.wait(60)
        thread.submit(done.set)
        assert done.wait(60)
        thread.end()

    def test_is_in_no_context(self):
        number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
        number.set(7)
        thread, found, done = WarmThread("mysqlpool-asgi-test"), [], threading.Event()
        thread.submit(lambda: (found.append(number.get()), done.set()))
        assert done.wait(60)
        assert found == [0]
        thread.end()

    def test_a_child_has_its_own(self):
        """A server may fork after its application has served."""
        program = """
import os, signal, threading
from django_mysqlpool.middleware.threads import WarmThread
def serve():
    served = threading.Event()
    thread.submit(served.set)
    served.wait()
thread = WarmThread("mysqlpool-asgi-1")
serve()
child = os.fork()
signal.alarm(60)
serve()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120, check=True)

    def test_python_ends_after_what_runs(self):
        program = """
import atexit, threading
from django_mysqlpool.middleware.threads import WarmThread
atexit.register(print, "the end", flush=True)  # Python calls it last,
busy, idle = WarmThread("busy"), WarmThread("idle")
begun, may_end = threading.Event(), threading.Event()
idle.submit(int)
busy.submit(lambda: (begun.set(), may_end.wait(), print("running", flush=True)))
busy.submit(lambda: print("queued", flush=True))
begun.wait()
atexit.register(may_end.set)  # and this first
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        assert (ended.stdout, ended.stderr) == ("running\nqueued\nthe end\n", "")


def call_of(function: Callable[..., Any], *args: Any) -> Any:
    """As asgiref hands it to an executor."""
    return partial(lambda handle, child: child(), None, partial(function, *args))


@pytest.mark.usefixtures("djangos_receivers")
class TestACloseOfAResponse:
    @pytest.fixture(autouse=True)
    def receivers_aside(self, djangos_receivers):
        put_aside()
        assert receivers.are_all_aside

    @pytest.fixture
    def response(self) -> HttpResponse:
        response = HttpResponse()
        response._resource_closers.append(AsyncRequestFactory().get("/").close)
        return response

    def test_is_made_at_once(self, loan, response):
        async def close() -> bool:
            return loan.submit(call_of(response.close)).done()

        assert asyncio.run(close())
        assert response.closed

    def test_is_made_after_the_call_before(self, loan, response):
        may_end = threading.Event()

        async def close() -> None:
            before, after = loan.submit(call_of(may_end.wait)), loan.submit(call_of(response.close))
            assert not response.closed
            may_end.set()
            await within(after)
            assert before.done()

        asyncio.run(close())
        assert response.closed

    @pytest.mark.parametrize(
        "call", [print, partial(print), partial(print, 1), call_of(print, 1), call_of(lambda: None), len]
    )
    def test_other_calls_are_none(self, call):
        assert idle_close(call) is None

    def test_nor_is_a_close_while_django_has_something_to_do_for_it(self, response, monkeypatch):
        assert idle_close(call_of(response.close)) == response.close
        monkeypatch.setattr(receivers, "are_all_aside", False)
        assert idle_close(call_of(response.close)) is None

    def test_nor_is_one_that_somebody_has_replaced(self, response, monkeypatch):
        monkeypatch.setattr(HttpResponse, "close", lambda self: None)
        assert idle_close(call_of(response.close)) is None
        monkeypatch.undo()
        monkeypatch.setattr(HttpResponseBase, "close", lambda self: None)
        assert idle_close(call_of(response.close)) is None
