"""``PooledThreadPoolExecutor``: an executor like Python's, whose threads leak nothing."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import threading
import warnings
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError, as_completed
from concurrent.futures.thread import BrokenThreadPool
from functools import partial

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from django.test import TestCase
from django.utils.connection import ConnectionDoesNotExist

from django_mysqlpool import PooledThreadPoolExecutor, auto_close_db, pool_status
from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope
from django_mysqlpool.threading_utils.testing import run_in_calling_thread
from tests.helpers import status_of
from tests.shop.models import Account
from tests.sites import WEB_SERVERS

pytestmark = [pytest.mark.python, pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode]


def out() -> int:
    return sum(status["out"] for status in pool_status().values())


def count(name: str = "nobody") -> int:
    return Account.objects.filter(name=name).count()


async def count_async() -> int:
    return await Account.objects.acount()


class AsyncCaller:
    async def __call__(self):
        return 0


number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


class TestWork:
    def test_submit_and_map_check_in(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0}, at_most=2)

        def work(number: int) -> tuple[int, int]:
            return number, Account.objects.using(wrapper.alias).filter(balance=number).count()

        with PooledThreadPoolExecutor(max_workers=2) as executor:
            assert executor.submit(work, 7).result() == (7, 0)
            assert list(executor.map(work, range(50))) == [(n, 0) for n in range(50)]
            # The worker that ran the last piece has returned before its result could be seen.
            assert status_of(wrapper)["out"] == 0

    def test_errors_arrive_and_what_was_left_open_is_rolled_back(self):
        def fail():
            connection.set_autocommit(False)
            Account.objects.create(name="left open")
            raise ZeroDivisionError

        with PooledThreadPoolExecutor(max_workers=1) as executor:
            with pytest.raises(ZeroDivisionError):
                executor.submit(fail).result()
            assert out() == 0
            assert executor.submit(count, "left open").result() == 0

    def test_keywords_and_any_callable(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            assert executor.submit(dict, fn=1, self=2, using=3).result() == {"fn": 1, "self": 2, "using": 3}
            assert executor.submit(partial(count, name="nobody")).result() == 0

    def test_a_worker_that_holds_a_block_of_its_submitter_is_not_nested_in_it(self):
        with auto_close_db(), PooledThreadPoolExecutor(max_workers=1) as executor:
            executor.submit(count).result()
            assert out() == 0


class TestAsPythons:
    def test_map_has_all_that_pythons_has(self):
        assert inspect.signature(PooledThreadPoolExecutor.map) == inspect.signature(ThreadPoolExecutor.map)
        with PooledThreadPoolExecutor(max_workers=2) as executor:
            assert list(executor.map(pow, [2, 3, 4], [2, 2, 2], timeout=60, chunksize=2)) == [4, 9, 16]

    @pytest.mark.skipif(sys.version_info < (3, 14), reason="Python's map() has buffersize from 3.14 on")
    def test_map_draws_no_more_than_buffersize(self):
        drawn = []

        def numbers():
            for drawing in range(100):
                drawn.append(drawing)
                yield drawing

        with PooledThreadPoolExecutor(max_workers=2) as executor:
            results = executor.map(str, numbers(), buffersize=3)
            assert next(results) == "0"
            assert len(drawn) <= 4

    def test_map_times_out(self):
        end = threading.Event()
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            try:
                with pytest.raises(TimeoutError):
                    list(executor.map(end.wait, [60], timeout=0.01))
            finally:
                end.set()

    def test_shutdown_may_cancel(self):
        begun, end = threading.Event(), threading.Event()
        executor = PooledThreadPoolExecutor(max_workers=1)
        running = executor.submit(lambda: (begun.set(), end.wait(60)))
        queued = executor.submit(count)
        assert begun.wait(60)
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            queued.result()
        end.set()
        assert running.result() == (None, True)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(count)

    def test_threads_are_named_and_initialized(self):
        seen = []

        def initialize(*args):
            count()
            seen.append((threading.current_thread().name, *args))

        with PooledThreadPoolExecutor(1, "worker", initialize, ("a", "b")) as executor:
            executor.submit(int).result()
            assert out() == 0  # what the initializer took has gone back
        assert seen == [("worker_0", "a", "b")]

    def test_an_initializer_that_fails_breaks_it(self):
        def fail():
            count()
            raise LookupError

        with PooledThreadPoolExecutor(max_workers=1, initializer=fail) as executor, pytest.raises(BrokenThreadPool):
            executor.submit(int).result()
        assert out() == 0

    def test_an_initializer_must_be_callable(self):
        with pytest.raises(TypeError, match="initializer must be a callable"):
            PooledThreadPoolExecutor(initializer=5)
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            PooledThreadPoolExecutor(0)

    def test_one_that_is_dropped_is_no_cycle(self):
        gc.disable()
        try:
            executor = PooledThreadPoolExecutor(max_workers=1)
            executor.submit(count).result()
            reference = weakref.ref(executor)
            del executor
            assert reference() is None
        finally:
            gc.enable()


class TestMaxWorkers:
    def test_left_out_it_is_the_cap(self, make_alias):
        alias = make_alias(pool={"pool_size": 2, "max_overflow": 1}).alias
        assert PooledThreadPoolExecutor(using=alias)._max_workers == 3
        assert PooledThreadPoolExecutor(using=[alias, "default"])._max_workers == 3
        assert PooledThreadPoolExecutor(using="default")._max_workers == 15
        assert PooledThreadPoolExecutor()._max_workers == 3

    def test_with_no_cap_it_is_pythons(self, make_alias):
        pythons = ThreadPoolExecutor()._max_workers
        for made in (
            make_alias(pool={"max_overflow": -1}),
            make_alias(pool={"pool_class": "NullPool"}),
            make_alias(pool=False),
            make_alias(ENGINE="django.db.backends.mysql"),
        ):
            assert PooledThreadPoolExecutor(using=made.alias)._max_workers == pythons
            assert PooledThreadPoolExecutor(500, using=made.alias)._max_workers == 500

    def test_more_than_the_cap_is_warned_of_where_the_executor_is_made(self, make_alias):
        alias = make_alias(pool={"pool_size": 2, "max_overflow": 0}).alias
        expected = f"max_workers=3, but the pool of alias '{alias}' lends at most 2 connections at a time"
        with pytest.warns(RuntimeWarning, match=expected) as caught:
            PooledThreadPoolExecutor(3, using=alias)
        assert caught[0].filename == __file__
        PooledThreadPoolExecutor(2, using=alias)  # warnings are errors here

    def test_it_is_warned_of_once_for_a_place(self, make_alias):
        alias = make_alias(pool={"pool_size": 1, "max_overflow": 0}).alias
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                PooledThreadPoolExecutor(2, using=alias)
        assert len(caught) == 1

    def test_no_worker_waits_with_as_many_as_the_cap(self, make_alias):
        alias = make_alias(pool={"pool_size": 2, "max_overflow": 1, "timeout": 0, "max_waiting": 0}, at_most=3).alias
        with PooledThreadPoolExecutor(using=alias) as executor:
            assert set(executor.map(lambda _: Account.objects.using(alias).filter(balance=-1).count(), range(200))) == {0}

    def test_what_is_no_alias_is_refused(self):
        with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
            PooledThreadPoolExecutor(using="nowhere")
        with pytest.raises(TypeError, match="must be an alias of DATABASES"):
            PooledThreadPoolExecutor(using=5)

    def test_nothing_is_opened(self, make_alias):
        wrapper = make_alias()
        PooledThreadPoolExecutor(using=wrapper.alias)
        assert status_of(wrapper)["open"] == 0


class TestContext:
    def test_a_worker_sees_the_context_of_its_submitter(self):
        token = number.set(5)
        try:
            with PooledThreadPoolExecutor(max_workers=1) as executor:
                assert executor.submit(number.get).result() == 5
                assert list(executor.map(lambda _: number.get(), range(2))) == [5, 5]
        finally:
            number.reset(token)

    def test_unless_it_is_told_not_to(self):
        token = number.set(5)
        try:
            with PooledThreadPoolExecutor(max_workers=1, propagate_context=False) as executor:
                assert executor.submit(contextvars.Context().run, number.get).result() == 0
                assert executor.submit(number.get).result() == contextvars_of_a_new_thread(number)
        finally:
            number.reset(token)

    def test_work_belongs_to_the_request_that_submitted_it(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor, Scope() as request:
            assert request.contains(executor.submit(current_scope).result())
            request.end()

    def test_work_that_outlives_its_request(self):
        ended, begun = threading.Event(), threading.Event()

        def work():
            first = count()
            begun.set()
            ended.wait(60)
            with transaction.atomic():
                return first, count(), current_scope().parent.has_ended

        with PooledThreadPoolExecutor(max_workers=1) as executor:
            with Scope() as request:
                future = executor.submit(work)
                assert begun.wait(60)
            request.end()
            assert out() == 0
            ended.set()
            assert future.result() == (0, 0, True)
            assert out() == 0


def contextvars_of_a_new_thread(variable):
    """Python 3.14 may be told to have threads inherit the context."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(variable.get()))
    thread.start()
    thread.join()
    return seen[0]


class TestCoroutineFunctions:
    @pytest.mark.parametrize(
        "function",
        [count_async, partial(count_async), AsyncCaller(), partial(AsyncCaller()), auto_close_db(count_async)],
        ids=["function", "partial", "object", "partial of an object", "decorated"],
    )
    def test_they_are_refused_with_the_way_out(self, function):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            for submit in (executor.submit, lambda function: executor.map(function, [1])):
                with pytest.raises(TypeError, match=r"is a coroutine function: .* Await it .*async_to_sync"):
                    submit(function)
            assert executor.submit(async_to_sync(count_async)).result() >= 0
        with pytest.raises(TypeError, match="is a coroutine function"):
            PooledThreadPoolExecutor(initializer=function)

    def test_an_instance_of_a_class_with_an_async_call_may_be_made(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            assert isinstance(executor.submit(AsyncCaller).result(), AsyncCaller)


class TestInEventLoops:
    """A hundred calls outside any request: with asyncio's own executor each thread keeps a connection."""

    @staticmethod
    async def calls_by(call):
        await asyncio.gather(*(call() for _ in range(100)))
        return out()

    @pytest.mark.parametrize("how", ["to_thread", "thread_sensitive=False", "run_in_executor"])
    def test_as_the_default_executor(self, how):
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_default_executor(PooledThreadPoolExecutor(thread_name_prefix="pooled"))
            if how == "to_thread":
                assert (await asyncio.to_thread(threading.current_thread)).name.startswith("pooled")
                return await self.calls_by(lambda: asyncio.to_thread(count))
            if how == "run_in_executor":
                return await self.calls_by(lambda: loop.run_in_executor(None, count))
            return await self.calls_by(sync_to_async(count, thread_sensitive=False))

        assert asyncio.run(main()) == 0

    def test_given_to_sync_to_async(self):
        async def main():
            with PooledThreadPoolExecutor() as executor:
                return await self.calls_by(sync_to_async(count, thread_sensitive=False, executor=executor))

        assert asyncio.run(main()) == 0

    def test_given_to_run_in_executor(self):
        async def main():
            with PooledThreadPoolExecutor() as executor:
                loop = asyncio.get_running_loop()
                return await self.calls_by(lambda: loop.run_in_executor(executor, count))

        assert asyncio.run(main(), debug=True) == 0


@pytest.mark.parametrize("kind", ["uvicorn", "hypercorn wrapped"])
def test_the_line_for_a_whole_asgi_application(serve, kind, monkeypatch):
    """The views' asyncio.to_thread runs in the executor's threads."""
    command = [*WEB_SERVERS[kind][:-1], "tests.executor_site:application"]
    monkeypatch.setitem(WEB_SERVERS, f"{kind} with executor", command)
    site = serve(f"{kind} with executor", pool={"pool_size": 4, "max_overflow": 1, "timeout": 60}, at_most=5)
    assert site.storm(["/threads-async/"] * 100) == {200: 100}
    site.wait_until_none_is_out()
    names = site.status()["threads"]
    assert 1 <= sum(name.startswith("pooled") for name in names) <= 5
    assert not any(name.startswith("asyncio") for name in names)


@pytest.fixture
def here():
    with run_in_calling_thread():
        yield threading.current_thread()


class TestCallingThread:
    def test_futures_are_done_at_once(self, here):
        with PooledThreadPoolExecutor(max_workers=2) as executor:
            future = executor.submit(threading.current_thread)
            assert isinstance(future, Future)
            assert future.done()
            assert future.result() is here
            futures = [executor.submit(pow, n, 2) for n in range(3)]
            assert {future.result() for future in as_completed(futures)} == {0, 1, 4}
        assert not executor._threads

    def test_map_and_errors(self, here):
        with PooledThreadPoolExecutor(max_workers=2) as executor:
            results = executor.map(lambda n: 1 // n, [1, 0])
            assert next(results) == 1
            with pytest.raises(ZeroDivisionError):
                next(results)

    def test_work_may_submit_work(self, here):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            assert executor.submit(lambda: executor.submit(int).result()).result() == 0

    def test_shutdown(self, here):
        executor = PooledThreadPoolExecutor(max_workers=1)
        executor.shutdown()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(int)

    def test_the_initializer_runs_once(self, here):
        seen = []
        with PooledThreadPoolExecutor(max_workers=2, initializer=seen.append, initargs=("begun",)) as executor:
            assert list(executor.map(str, range(3))) == ["0", "1", "2"]
        assert seen == ["begun"]

    def test_an_initializer_that_fails_breaks_it(self, here, caplog):
        def fail():
            raise LookupError

        with PooledThreadPoolExecutor(max_workers=1, initializer=fail) as executor:
            with pytest.raises(BrokenThreadPool):
                executor.submit(int).result()
            with pytest.raises(BrokenThreadPool):
                executor.submit(int)
        assert "Exception in initializer" in caplog.text

    def test_context_does_not_come_back(self, here):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            executor.submit(number.set, 7).result()
        assert number.get() == 0

    def test_afterwards_there_are_threads_again(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            with run_in_calling_thread(), run_in_calling_thread():
                assert executor.submit(threading.current_thread).result() is threading.current_thread()
            assert executor.submit(threading.current_thread).result() is not threading.current_thread()

    @run_in_calling_thread()
    def test_it_decorates_functions(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            assert executor.submit(threading.current_thread).result() is threading.current_thread()

    def test_outside_a_transaction_work_gives_back(self, here):
        with PooledThreadPoolExecutor(max_workers=1) as executor:
            assert executor.submit(count).result() == 0
            assert connections["default"].connection is None


@run_in_calling_thread()
class TestUnderTestCase(TestCase):
    def test_work_sees_the_tests_transaction(self):
        account = Account.objects.create(name="of the test")
        with PooledThreadPoolExecutor(max_workers=2) as executor:
            self.assertEqual(list(executor.map(count, ["of the test", "nobody"])), [1, 0])
            executor.submit(Account.objects.create, name="of the work").result()
        self.assertTrue(Account.objects.filter(pk=account.pk).exists())
        self.assertEqual(count("of the work"), 1)


@run_in_calling_thread()
class TestUnderAsynchronousTestCase(TestCase):
    async def test_work_sees_the_tests_transaction(self):
        await Account.objects.acreate(name="of the test")
        asyncio.get_running_loop().set_default_executor(PooledThreadPoolExecutor())
        self.assertEqual(await asyncio.to_thread(count, "of the test"), 1)
        with pytest.raises(LookupError):
            await asyncio.to_thread({}.__getitem__, 1)
        self.assertEqual(await Account.objects.acount(), 1)
