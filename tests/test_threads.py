"""Threads that want more than there is, threads that die, and cursors that are kept."""

from __future__ import annotations

import re
import threading
from contextlib import suppress

import pytest
from django.db import ProgrammingError, connections, transaction

from django_mysqlpool import PooledThreadPoolExecutor, PoolTimeout, auto_close_db
from django_mysqlpool.mysqlpool.pool import reports
from tests.helpers import SEVERAL_STATEMENTS, backend_pid, eventually, hold_at_once, holds, in_thread_holding, status_of
from tests.shop.models import Account

pytestmark = [pytest.mark.python, pytest.mark.driver, pytest.mark.mode]


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
            new = set(threading.enumerate()) - before
            (holder,) = [thread for thread in new if thread.name != "mysqlpool-housekeeper"]
            try_here()

        in_thread_holding(wrapper.alias, act)
        assert wrapper.connection is None
        backend_pid(wrapper)

    @pytest.mark.parametrize("leak_after", [None, 3600])
    def test_it_names_what_the_holders_do(self, make_alias, leak_after):
        """The work, and the kind of the last statement, without its values; with leak_after also where it checked out."""
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.1, "leak_after": leak_after})
        held, end = threading.Event(), threading.Event()

        @auto_close_db
        def write_report() -> None:
            with transaction.atomic(wrapper.alias), connections[wrapper.alias].cursor() as cursor:
                cursor.execute("SELECT 'a secret'")
                held.set()
                assert end.wait(60)

        with PooledThreadPoolExecutor(1) as executor:
            future = executor.submit(write_report)
            try:
                assert held.wait(60)
                with pytest.raises(PoolTimeout) as caught:
                    wrapper.ensure_connection()
            finally:
                end.set()
            future.result()
        message = str(caught.value)
        assert re.search(r"for \d+\.\d s, in tests\.test_threads\.\S*write_report, last statement: SELECT\.", message)
        assert "secret" not in message.split("checked out here", maxsplit=1)[0]
        assert ("in write_report" in message) == (leak_after is not None)

    def test_it_holds_for_a_queue_pool_of_the_users_own(self, make_alias):
        wrapper = make_alias(
            pool={"pool_class": "tests.helpers.CustomPool", "pool_size": 1, "max_overflow": 0, "timeout": 0.1}
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
    def test_each_leaves_a_connection_out_and_none_is_lost(self, make_alias, monkeypatch, caplog):
        """Thirty threads, one after another, over a pool of five; what each had begun is rolled back."""
        monkeypatch.setattr(reports, "FIRST_PAUSE", 3600)
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
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0)
        # It is one place in the code, which is told of once for as long as the pause lasts.
        eventually(lambda: re.findall(r"never given back by thread 'mortal-\d+'", caplog.text), lambda told: len(told) == 1)
        hold_at_once(wrapper.alias, 5)
        assert status_of(wrapper)["open"] == 5
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


@holds
class TestCursorsThatOutliveTheirLease:
    def test_they_are_closed(self, make_alias):
        wrapper = make_alias()
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        wrapper.close()
        with pytest.raises(ProgrammingError, match="[cC]ursor closed"):
            cursor.execute("SELECT 2")
        cursor.close()

    def test_also_where_the_connection_is_out_again(self, make_alias):
        wrapper = make_alias()
        cursor = wrapper.cursor()
        wrapper.close()
        first = backend_pid(wrapper)
        with pytest.raises(ProgrammingError, match="[cC]ursor closed"):
            cursor.execute("SELECT 2")
        assert backend_pid(wrapper) == first

    @pytest.mark.parametrize("end", ["close", "nextset"])
    def test_they_read_no_answer_of_the_next_one(self, make_alias, end):
        wrapper = make_alias(options=SEVERAL_STATEMENTS)
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        wrapper.close()
        with wrapper.cursor() as next_one:
            next_one.execute("SELECT 2; SELECT 3")
            with suppress(ProgrammingError):
                getattr(cursor, end)()
            assert next_one.fetchone() == (2,)
            assert next_one.nextset()
            assert next_one.fetchone() == (3,)
