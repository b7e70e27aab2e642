"""``auto_close_db``: whatever Python calls returns what it took."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.db import connection, connections, transaction
from django.test import TestCase
from django.utils.connection import ConnectionDoesNotExist

from django_mysqlpool import auto_close_db, pool_status
from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope
from tests.helpers import backend_pid, eventually, holds, status_of
from tests.shop.models import Account

pytestmark = [pytest.mark.python, pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode]


def out() -> int:
    return sum(status["out"] for status in pool_status().values())


def count(name: str = "nobody") -> int:
    """How many accounts have this name."""
    assert current_scope() is not None
    return Account.objects.filter(name=name).count()


async def count_async(name: str = "nobody") -> int:
    """How many accounts have this name, asynchronously."""
    assert current_scope() is not None
    return await Account.objects.filter(name=name).acount()


def counts(name: str = "nobody"):
    """Twice how many accounts have this name."""
    for _ in range(2):
        yield count(name)


async def counts_async(name: str = "nobody"):
    """The same, asynchronously."""
    for _ in range(2):
        yield await count_async(name)


class Caller:
    """Its methods, of all kinds."""

    def __call__(self, name: str = "nobody") -> int:
        return count(name)

    @auto_close_db
    def method(self, name: str = "nobody") -> int:
        return count(name)

    @auto_close_db
    @staticmethod
    def static_below(name: str = "nobody") -> int:
        return count(name)

    @staticmethod
    @auto_close_db
    def static_above(name: str = "nobody") -> int:
        return count(name)

    @auto_close_db
    @classmethod
    def class_below(cls, name: str = "nobody") -> int:
        assert issubclass(cls, Caller)
        return count(name)

    @classmethod
    @auto_close_db(using=["default"])
    def class_above(cls, name: str = "nobody") -> int:
        assert issubclass(cls, Caller)
        return count(name)


class AsyncCaller:
    async def __call__(self, name: str = "nobody") -> int:
        return await count_async(name)


class GeneratorCaller:
    def __call__(self, name: str = "nobody"):
        yield count(name)
        yield count(name)


@markcoroutinefunction
def marked(name: str = "nobody"):
    return count_async(name)


SYNC = {
    "function": auto_close_db(count),
    "with parentheses": auto_close_db()(count),
    "with using": auto_close_db(using="default")(count),
    "object": auto_close_db(Caller()),
    "partial": auto_close_db(partial(count, name="nobody")),
    "method": Caller().method,
    "bound method": auto_close_db(Caller().__call__),
    "static, decorated above": Caller.static_below,
    "static, decorated below": Caller().static_above,
    "class, decorated above": Caller.class_below,
    "class, decorated below": Caller().class_above,
}
ASYNC = {
    "function": auto_close_db(count_async),
    "with using": auto_close_db(using="default")(count_async),
    "object": auto_close_db(AsyncCaller()),
    "partial": auto_close_db(partial(count_async, "nobody")),
    "partial of an object": auto_close_db(partial(AsyncCaller(), "nobody")),
    "marked": auto_close_db(marked),
}
GENERATORS = {
    "function": auto_close_db(counts),
    "object": auto_close_db(GeneratorCaller()),
    "partial": auto_close_db(partial(counts, "nobody")),
}
ASYNC_GENERATORS = {
    "function": auto_close_db(counts_async),
    "partial": auto_close_db(partial(counts_async, "nobody")),
}


def named(callables):
    return pytest.mark.parametrize("called", callables.values(), ids=callables.keys())


class TestWhatIsCalled:
    @named(SYNC)
    def test_a_call_gives_back(self, called):
        assert called() == 0
        assert connection.connection is None
        assert out() == 0

    @named(ASYNC)
    def test_a_coroutine_gives_back(self, called):
        assert inspect.iscoroutinefunction(called)
        assert asyncio.run(called()) == 0
        assert out() == 0

    @holds
    @named(GENERATORS)
    def test_a_generator_gives_back_when_it_ends(self, called):
        assert inspect.isgeneratorfunction(called)
        generator = called()
        assert next(generator) == 0
        assert out() == 1
        assert list(generator) == [0]
        assert out() == 0

    @named(ASYNC_GENERATORS)
    def test_an_async_generator_gives_back_when_it_ends(self, called):
        assert inspect.isasyncgenfunction(called)

        async def consume():
            return [value async for value in called()]

        assert asyncio.run(consume()) == [0, 0]
        assert out() == 0

    @pytest.mark.parametrize("function", [count, count_async, counts, counts_async], ids=lambda f: f.__name__)
    def test_it_looks_like_what_was_decorated(self, function):
        decorated = auto_close_db(function)
        assert decorated is not function
        assert decorated.__name__ == function.__name__
        assert decorated.__doc__ == function.__doc__
        assert decorated.__module__ == function.__module__
        assert inspect.signature(decorated) == inspect.signature(function)
        for is_such in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            assert is_such(decorated) == is_such(function)

    def test_objects_and_partials_keep_their_signature_and_have_a_name(self):
        decorated = auto_close_db(partial(count, "nobody"))
        assert str(inspect.signature(decorated)) == "() -> 'int'"
        assert decorated.__name__ == "partial"
        assert str(inspect.signature(auto_close_db(Caller()))) == "(name: 'str' = 'nobody') -> 'int'"
        assert auto_close_db(Caller()).__name__ == "Caller"

    def test_static_and_class_methods_stay_what_they_are(self):
        assert isinstance(vars(Caller)["static_below"], staticmethod)
        assert isinstance(vars(Caller)["class_below"], classmethod)

    @pytest.mark.parametrize("what", ["default", 5, property(count)])
    def test_what_cannot_be_called_is_refused(self, what):
        with pytest.raises(TypeError, match="decorates what can be called"):
            auto_close_db(what)


class TestHoweverItEnds:
    @auto_close_db
    def fail(self):
        connection.set_autocommit(False)
        Account.objects.create(name="left open")
        raise LookupError

    def test_by_an_exception_and_rolled_back(self):
        with pytest.raises(LookupError):
            self.fail()
        assert out() == 0
        assert not Account.objects.filter(name="left open").exists()

    def test_an_atomic_block_that_nobody_left_is_rolled_back(self):
        @auto_close_db
        def leave_open():
            transaction.atomic().__enter__()
            Account.objects.create(name="left open")

        leave_open()
        assert out() == 0
        assert not connection.in_atomic_block
        assert not Account.objects.filter(name="left open").exists()

    def test_what_the_caller_took_before_goes_back_too(self):
        connection.ensure_connection()
        auto_close_db(int)()
        assert out() == 0

    def test_a_coroutine_that_leaves_a_transaction_open(self):
        @auto_close_db
        async def leave_open():
            await sync_to_async(self.fail.__wrapped__)(self)

        with pytest.raises(LookupError):
            asyncio.run(leave_open())
        assert out() == 0
        assert not Account.objects.filter(name="left open").exists()

    @holds
    def test_a_coroutine_that_is_cancelled(self):
        async def cancel():
            is_out = asyncio.Event()

            @auto_close_db
            async def wait():
                await Account.objects.acount()
                is_out.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(wait())
            await is_out.wait()
            assert out() == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert out() == 0

        asyncio.run(cancel())

    @holds
    def test_a_coroutine_that_is_dropped(self):
        """With its loop gone, it is closed in a context that it never was in."""

        @auto_close_db
        async def wait(is_out):
            await Account.objects.acount()
            is_out.set()
            await asyncio.Future()

        async def leave():
            is_out = asyncio.Event()
            task = asyncio.ensure_future(wait(is_out))
            await is_out.wait()
            return task.get_coro()

        loop = asyncio.new_event_loop()
        coroutine = loop.run_until_complete(leave())
        assert out() == 1
        coroutine.close()
        loop.close()
        assert out() == 0

    @holds
    def test_threads_of_a_coroutine(self):
        @auto_close_db
        async def work():
            await asyncio.gather(*(asyncio.to_thread(count) for _ in range(3)))
            await sync_to_async(count, thread_sensitive=False)()
            assert out() > 0

        asyncio.run(work())
        assert out() == 0

    def test_threads_that_took_the_context_along(self):
        is_out, end = threading.Event(), threading.Event()

        def work():
            Account.objects.count()
            is_out.set()
            end.wait(60)

        @auto_close_db
        def start():
            thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
            thread.start()
            assert is_out.wait(60)
            return thread

        thread = start()
        assert out() == 0
        end.set()
        thread.join()


class TestGenerators:
    @holds
    @pytest.mark.parametrize("how", ["close", "drop", "throw"])
    def test_one_that_is_not_read_to_its_end(self, how):
        generator = auto_close_db(counts)()
        next(generator)
        assert out() == 1
        if how == "close":
            generator.close()
        elif how == "drop":
            del generator
        else:
            with pytest.raises(LookupError):
                generator.throw(LookupError())
        assert out() == 0

    def test_send_throw_and_return_are_the_generators(self):
        @auto_close_db
        def echo():
            received = []
            while True:
                try:
                    received.append((yield len(received)))
                except KeyError as error:
                    received.append(error.args[0])
                if received[-1] is None:
                    return received

        def delegate():
            return (yield from echo())

        generator = delegate()
        assert [next(generator), generator.send("a"), generator.throw(KeyError("b"))] == [0, 1, 2]
        with pytest.raises(StopIteration) as stop:
            next(generator)
        assert stop.value.value == ["a", "b", None]

    def test_close_reaches_it(self):
        seen = []

        @auto_close_db
        def notice():
            try:
                yield
            except GeneratorExit:
                seen.append(count())
                raise

        generator = notice()
        next(generator)
        generator.close()
        assert seen == [0]
        assert out() == 0

    def test_its_work_is_current_during_its_steps_only(self):
        generator = auto_close_db(counts)()
        next(generator)
        assert current_scope() is None
        generator.close()

    def test_its_transaction_goes_on_between_steps(self):
        @auto_close_db
        def in_transaction():
            with transaction.atomic():
                Account.objects.create(name="between")
                yield
                assert Account.objects.filter(name="between").exists()
                yield
                transaction.set_rollback(True)

        assert list(in_transaction()) == [None, None]
        assert out() == 0

    def test_it_may_end_inside_an_atomic_block_of_its_consumer(self):
        generator = auto_close_db(counts)()
        next(generator)
        with transaction.atomic():
            Account.objects.create(name="the consumer's")
            list(generator)
            assert Account.objects.filter(name="the consumer's").exists()
            transaction.set_rollback(True)

    def test_a_transaction_that_its_consumer_goes_on_with_is_the_consumers(self):
        @auto_close_db
        def begin():
            connection.set_autocommit(False)
            yield count()

        generator = begin()
        next(generator)
        with transaction.atomic():
            Account.objects.create(name="the consumer's")
            assert list(generator) == []
            assert Account.objects.filter(name="the consumer's").exists()
        connection.rollback()
        connection.close()

    def test_what_a_step_calls_is_nested_in_whatever_thread(self):
        @auto_close_db
        def steps():
            yield
            with connection.cursor() as cursor:
                cursor.execute("SET @of_the_step = 5")
                SYNC["function"]()
                cursor.execute("SELECT @of_the_step")
                yield cursor.fetchone()

        generator = steps()
        next(generator)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(next, generator).result() == (5,)
            other.submit(generator.close).result()
        assert out() == 0

    def test_closed_it_leaves_alone_what_its_thread_does(self):
        """A generator may be dropped wherever the garbage collector finds it."""
        generator = auto_close_db(counts)()
        next(generator)
        with connection.cursor() as cursor:
            cursor.execute("SET @of_the_consumer = 5")
            generator.close()
            cursor.execute("SELECT @of_the_consumer")
            assert cursor.fetchone() == (5,)

    def test_it_may_be_read_in_several_threads(self):
        generator = auto_close_db(counts)()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            assert one.submit(next, generator).result() == 0
            assert two.submit(next, generator).result() == 0
            assert two.submit(next, generator, None).result() is None
            assert out() == 0

    @holds
    @pytest.mark.parametrize("how", ["aclose", "drop", "athrow", "break"])
    def test_an_async_one_that_is_not_read_to_its_end(self, how):
        async def leave():
            generator = auto_close_db(counts_async)()
            if how == "break":
                async for _ in generator:
                    break
            else:
                await anext(generator)
            assert out() == 1
            assert current_scope() is None
            if how == "aclose":
                await generator.aclose()
            elif how == "athrow":
                with pytest.raises(LookupError):
                    await generator.athrow(LookupError())
            else:
                del generator
                await asyncio.to_thread(eventually, out, lambda number: number == 0)
            assert out() == 0

        asyncio.run(leave())

    def test_asend_and_athrow_are_the_async_generators(self):
        @auto_close_db
        async def echo():
            try:
                received = yield
                yield received
            except KeyError as error:
                yield error.args[0]

        async def talk():
            generator = echo()
            said = [await anext(generator), await generator.asend("a"), await generator.athrow(KeyError("b"))]
            await generator.aclose()
            return said

        assert asyncio.run(talk()) == [None, "a", "b"]


class TestBlocks:
    @holds
    def test_with(self):
        with auto_close_db():
            assert count() == 0
            assert out() == 1
        assert out() == 0

    @holds
    def test_async_with(self):
        async def work():
            async with auto_close_db():
                assert await count_async() == 0
                assert out() == 1
            assert out() == 0

        asyncio.run(work())

    def test_one_object_serves_many_threads_and_blocks_in_blocks(self):
        release, both = auto_close_db(using="default"), threading.Barrier(2, timeout=60)

        def work():
            with release, release:
                both.wait()
                assert count() == 0
                both.wait()
            return connection.connection is None

        with ThreadPoolExecutor(2) as executor:
            assert [future.result() for future in [executor.submit(work) for _ in range(2)]] == [True, True]
        assert out() == 0

    def test_in_an_event_loop_that_may_use_the_database(self, monkeypatch):
        """As in a notebook."""
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

        async def work():
            async with auto_close_db():
                with connection.cursor() as cursor:
                    cursor.execute("SET @dirty = 1")
            assert out() == 0
            with auto_close_db():
                connection.set_autocommit(False)
                count()
            assert out() == 0

        asyncio.run(work())


class TestNested:
    def test_the_outermost_gives_back(self):
        @auto_close_db
        def outer():
            with connection.cursor() as cursor:
                cursor.execute("SET @of_the_outer = 5")
            SYNC["function"]()
            with auto_close_db():
                list(GENERATORS["function"]())
            with connection.cursor() as cursor:
                cursor.execute("SELECT @of_the_outer")
                return cursor.fetchone()

        assert outer() == (5,)
        assert out() == 0

    @holds
    def test_in_a_coroutine_too(self):
        @auto_close_db
        async def outer():
            first = await sync_to_async(backend_pid)(connection)
            await ASYNC["function"]()
            assert out() == 1
            return first == await sync_to_async(backend_pid)(connection)

        assert asyncio.run(outer())
        assert out() == 0

    def test_a_task_of_it_has_its_own_end(self):
        @auto_close_db
        async def outer():
            await asyncio.create_task(ASYNC["function"]())
            assert out() == 0

        asyncio.run(outer())

    def test_the_same_context_in_another_thread_is_not_nested(self):
        @auto_close_db
        def outer():
            with ThreadPoolExecutor(1) as executor:
                executor.submit(contextvars.copy_context().run, SYNC["function"]).result()
                assert out() == 0
            count()

        outer()
        assert out() == 0

    def test_a_context_that_outlives_it_is_not_nested(self):
        @auto_close_db
        def leave_open():
            connection.set_autocommit(False)
            count()

        context = auto_close_db(contextvars.copy_context)()
        context.run(leave_open)
        assert out() == 0

    @holds
    def test_an_inner_one_gives_back_what_no_outer_one_looks_after(self, make_alias):
        one, two = make_alias(), make_alias()

        @auto_close_db
        def inner():
            backend_pid(one)
            backend_pid(two)

        @auto_close_db(using=one.alias)
        def outer():
            inner()
            return status_of(one)["out"], status_of(two)["out"]

        assert outer() == (1, 0)
        assert (status_of(one)["out"], status_of(two)["out"]) == (0, 0)

    def test_a_generator_outlives_the_call_it_was_begun_in(self):
        @auto_close_db
        def begin():
            generator = GENERATORS["function"]()
            next(generator)
            return generator

        generator = begin()
        assert out() == 0
        assert list(generator) == [0]
        assert out() == 0

    def test_a_request_inside_it_ends_as_requests_do(self):
        @auto_close_db
        def outer():
            with Scope() as request:
                SYNC["function"]()
            request.end()
            assert out() == 0

        outer()


class TestUsing:
    @pytest.mark.parametrize("kind", [str, lambda alias: [alias], lambda alias: {alias}], ids=["name", "list", "set"])
    def test_other_aliases_stay(self, make_alias, kind):
        one, two = make_alias(), make_alias()

        @auto_close_db(using=kind(one.alias))
        def work():
            backend_pid(one)
            two.set_autocommit(False)
            return backend_pid(two)

        pid = work()
        assert (status_of(one)["out"], status_of(two)["out"]) == (0, 1)
        assert backend_pid(two) == pid
        assert not two.get_autocommit()

    @pytest.mark.parametrize("using", [5, b"default", [b"default"], ["default", None]])
    def test_what_is_no_alias_is_refused_at_once(self, using):
        with pytest.raises(TypeError, match="must be an alias of DATABASES, or a list of them"):
            auto_close_db(using=using)

    def test_an_unknown_alias_is_djangos_error_at_the_call(self):
        called = []
        decorated = auto_close_db(using="nowhere")(called.append)
        with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
            decorated(1)
        with pytest.raises(ConnectionDoesNotExist, match="nowhere"), auto_close_db(using=["default", "nowhere"]):
            called.append(2)
        assert not called

    def test_an_alias_that_is_not_pooled_is_treated_as_djangos_requests_treat_it(self, make_alias):
        brief = make_alias(ENGINE="django.db.backends.mysql")
        lasting = make_alias(ENGINE="django.db.backends.mysql", CONN_MAX_AGE=None)

        @auto_close_db
        def work():
            return backend_pid(brief), backend_pid(lasting)

        work()
        assert brief.connection is None
        assert lasting.connection is not None
        auto_close_db(using=brief.alias)(lasting.set_autocommit)(False)
        assert lasting.connection is not None
        work()
        assert lasting.connection is None


class TestInsideAtomic:
    def test_a_transaction_of_the_callers_goes_on(self):
        with transaction.atomic():
            Account.objects.create(name="inside")
            assert SYNC["function"]("inside") == 1
            assert list(GENERATORS["function"]("inside")) == [1, 1]
            with auto_close_db():
                assert count("inside") == 1
            transaction.set_rollback(True)
        assert not Account.objects.filter(name="inside").exists()

    def test_other_aliases_go_back(self, make_alias):
        wrapper = make_alias()
        with transaction.atomic():
            auto_close_db(backend_pid)(wrapper)
            assert status_of(wrapper)["out"] == 0
            assert connection.in_atomic_block


class OfTheTest(TestCase):
    # (A class for each test: the harness closes connections after a test, and a TestCase class holds them to its end.)
    def setUp(self):
        self.account = Account.objects.create(name="of the test")


class TestUnderTestCase(OfTheTest):
    def test_what_the_test_holds_stays(self):
        self.assertEqual(SYNC["function"]("of the test"), 1)
        self.assertEqual(list(GENERATORS["function"]("of the test")), [1, 1])
        with auto_close_db():
            self.assertEqual(count("of the test"), 1)
        self.assertEqual(async_to_sync(ASYNC["function"])("of the test"), 1)
        self.assertTrue(Account.objects.filter(pk=self.account.pk).exists())


class TestUnderAsynchronousTestCase(OfTheTest):
    async def test_what_the_test_holds_stays(self):
        self.assertEqual(await ASYNC["function"]("of the test"), 1)
        self.assertEqual([value async for value in ASYNC_GENERATORS["function"]("of the test")], [1, 1])
        async with auto_close_db():
            self.assertEqual(await count_async("of the test"), 1)
        self.assertTrue(await Account.objects.filter(pk=self.account.pk).aexists())


def test_a_plain_function_in_an_event_loop_asks_nothing_of_the_server():
    """It runs in the loop's thread, where nothing may wait; what it started elsewhere goes back if it is clean."""

    async def work():
        SYNC_NOTHING()
        return out()

    connections["default"].ensure_connection()
    assert asyncio.run(work()) == 1


SYNC_NOTHING = auto_close_db(lambda: None)
