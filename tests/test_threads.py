"""What ends a piece of work: ``auto_close_db`` and ``PooledThreadPoolExecutor``."""

from __future__ import annotations

import inspect
import threading

import pytest
from django.db import ProgrammingError, connection, connections, transaction

from django_mysqlpool import PooledThreadPoolExecutor, PoolTimeout, auto_close_db
from tests.shop.models import Account
from tests.test_engine import backend_pid, in_thread_holding, status_of


@auto_close_db
def count(name: str) -> int:
    """How many accounts have this name."""
    return Account.objects.filter(name=name).count()


class TestAutoCloseDb:
    def test_the_connection_goes_back(self):
        assert count("nobody") == 0
        assert connection.connection is None
        assert status_of(connection)["out"] == 0

    def test_so_it_does_where_the_function_raises(self):
        @auto_close_db
        def fail():
            connection.ensure_connection()
            raise LookupError

        with pytest.raises(LookupError):
            fail()
        assert connection.connection is None

    def test_a_transaction_of_the_callers_goes_on(self):
        with transaction.atomic():
            Account.objects.create(name="inside")
            assert count("inside") == 1
            transaction.set_rollback(True)
        assert count("inside") == 0

    def test_it_looks_like_the_function(self):
        assert count.__name__ == "count"
        assert count.__doc__ == "How many accounts have this name."
        assert str(inspect.signature(count)) == "(name: 'str') -> 'int'"


class TestExecutor:
    def test_submit_and_map_give_back(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0}, at_most=2)

        def work(number: int) -> tuple[int, int]:
            return number, Account.objects.using(wrapper.alias).filter(balance=number).count()

        with PooledThreadPoolExecutor(max_workers=2) as executor:
            assert executor.submit(work, 7).result() == (7, 0)
            assert list(executor.map(work, range(50))) == [(n, 0) for n in range(50)]
            # The worker that ran the last piece has given back before its result could be seen.
            assert status_of(wrapper)["out"] == 0

    def test_errors_arrive(self):
        with PooledThreadPoolExecutor(max_workers=1) as executor, pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result()


class TestExhaustion:
    def test_it_says_what_happened_to_whom_and_what_to_change(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.1})

        def try_here():
            with pytest.raises(PoolTimeout) as caught:
                wrapper.ensure_connection()
            message = str(caught.value)
            assert f"No connection for alias '{wrapper.alias}'" in message
            assert "none came free within timeout = 0.1 s" in message
            assert "The cap is 1: 1 out, 0 idle, 0 waiting." in message
            assert f"Held by {holder.name} for" in message
            assert "raise pool_size or max_overflow" in message

        before = set(threading.enumerate())
        holder = threading.Thread()

        def act():
            nonlocal holder
            (holder,) = set(threading.enumerate()) - before
            try_here()

        in_thread_holding(wrapper.alias, act)
        assert wrapper.connection is None
        backend_pid(wrapper)

    def test_it_holds_for_a_queue_pool_of_the_users_own(self, make_alias):
        wrapper = make_alias(
            pool={"pool_class": "tests.test_options.CustomPool", "pool_size": 1, "max_overflow": 0, "timeout": 0.1}
        )

        def act():
            with pytest.raises(PoolTimeout, match="The cap is 1: 1 out"):
                wrapper.ensure_connection()

        in_thread_holding(wrapper.alias, act)

    def test_max_waiting_refuses_at_once(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "max_waiting": 0})

        def act():
            with pytest.raises(PoolTimeout, match="max_waiting = 0 threads wait for one already"):
                wrapper.ensure_connection()

        in_thread_holding(wrapper.alias, act)


class TestThreadsThatDie:
    def test_each_leaves_a_connection_out_and_none_is_lost(self, make_alias, caplog):
        """Thirty threads, one after another, over a pool of five; what each had begun is rolled back."""
        wrapper = make_alias(pool={"pool_size": 5, "max_overflow": 0, "timeout": 10}, at_most=5)
        kept = []

        def leave_out() -> None:
            own = connections[wrapper.alias]
            kept.append(own)  # so that no garbage collector finds it
            own.set_autocommit(False)
            Account.objects.using(wrapper.alias).create(name="of a dead thread")

        for number in range(30):
            thread = threading.Thread(target=leave_out, name=f"mortal-{number}")
            thread.start()
            thread.join()
        assert len(kept) == 30
        assert status_of(wrapper)["open"] == 5
        assert "never given back by thread 'mortal-0'" in caplog.text
        wrapper.pool.close()
        for own in kept[-5:]:
            own.inc_thread_sharing()
            own.close()
        assert not Account.objects.filter(name="of a dead thread").exists()

    def test_one_that_waits_gets_what_a_dying_thread_leaves(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 10})
        held, end, kept = threading.Event(), threading.Event(), []

        def leave_out() -> None:
            kept.append(connections[wrapper.alias])
            kept[0].ensure_connection()
            held.set()
            end.wait(60)

        thread = threading.Thread(target=leave_out)
        thread.start()
        assert held.wait(60)
        threading.Timer(0.2, end.set).start()
        assert backend_pid(wrapper)
        assert kept[0].connection is None


class TestCursorsThatOutliveTheirLease:
    def test_they_are_closed(self, make_alias):
        wrapper = make_alias()
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        wrapper.close()
        with pytest.raises(ProgrammingError, match="cursor closed"):
            cursor.execute("SELECT 2")
        cursor.close()

    def test_also_where_the_connection_is_out_again(self, make_alias):
        wrapper = make_alias()
        cursor = wrapper.cursor()
        wrapper.close()
        first = backend_pid(wrapper)
        with pytest.raises(ProgrammingError, match="cursor closed"):
            cursor.execute("SELECT 2")
        assert backend_pid(wrapper) == first
