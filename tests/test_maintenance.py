"""Maintenance of a pool while nobody asks: trim, renew, keep warm, reclaim, report; and how the thread ends."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.test import RequestFactory

import django_mysqlpool
from devtools.lifeline import tied
from django_mysqlpool import close_pool
from django_mysqlpool.mysqlpool.pool import pressure, tasks
from django_mysqlpool.mysqlpool.pool.maintenance import PoolMaintenance, maintenance
from django_mysqlpool.mysqlpool.pool.tasks import open_one_more
from tests.helpers import DATABASE, backend_pid, eventually, hold_at_once, holds, look, status_of
from tests.relay import Relay
from tests.shop.models import Account

pytestmark = [pytest.mark.python, pytest.mark.driver, pytest.mark.mode]


def pids_of(observer, wrapper) -> set[int]:
    return observer.connections_of(wrapper.settings_dict["USER"])


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mysqlpool-housekeeper"]


class TestTrimming:
    def test_idle_connections_are_closed_with_nobody_doing_anything(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 3, "idle_timeout": 0.2})
        hold_at_once(wrapper.alias, 3)
        eventually(lambda: pids_of(observer, wrapper), lambda pids: not pids)
        eventually(lambda: status_of(wrapper)["open"], lambda number: number == 0)

    def test_down_to_min_idle(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 3, "idle_timeout": 0, "min_idle": 2})
        hold_at_once(wrapper.alias, 3)
        eventually(lambda: len(pids_of(observer, wrapper)), lambda number: number == 2)
        rounds(3)
        assert len(pids_of(observer, wrapper)) == 2

    @holds
    def test_what_is_out_stays(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 3, "idle_timeout": 0})
        pid = backend_pid(wrapper)
        rounds(3)
        assert backend_pid(wrapper) == pid


def look_between_rounds(alias: str) -> None:
    """Check out and in. A round that met the connection while it is out would open one more to keep the pool warm."""
    is_back, do = threading.Event(), PoolMaintenance.run

    def later(chores: PoolMaintenance) -> None:
        assert is_back.wait(60)
        do(chores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolMaintenance, "run", later)
        look(alias)
        is_back.set()


def rounds(number: int) -> None:
    """Wait for as many of the maintenance thread's rounds; one that had begun does not count."""
    did = threading.Semaphore(0)
    do = PoolMaintenance.run

    def counted(chores: PoolMaintenance) -> None:
        do(chores)
        did.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolMaintenance, "run", counted)
        for _ in range(number):
            assert did.acquire(timeout=60)


class TestKeepingWarm:
    def test_min_idle_is_filled_from_the_first_checkout_on(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 5, "min_idle": 3})
        look_between_rounds(wrapper.alias)
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 3)
        assert len(pids_of(observer, wrapper)) == 3

    def test_it_is_refilled_after_a_kill(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 5, "min_idle": 3})
        look_between_rounds(wrapper.alias)
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 3)
        dead = pids_of(observer, wrapper)
        for pid in dead:
            observer.query(f"KILL {pid}")
        eventually(lambda: pids_of(observer, wrapper) - dead, lambda pids: len(pids) == 3)

    def test_a_session_is_set_up_by_its_borrower(self, make_alias):
        """Django and the receivers of its signals may wait for the server for ever; the maintenance thread must not."""
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "min_idle": 1, "use_lifo": False})
        threads = []

        def receive(connection: Any, **kwargs: Any) -> None:
            if connection.alias == wrapper.alias:
                threads.append(threading.current_thread())

        connection_created.connect(receive)
        try:
            wrapper.ensure_connection()
            eventually(lambda: status_of(wrapper), lambda status: status["idle"] == 1)
            wrapper.close()
            for _ in range(2):
                with wrapper.cursor() as cursor:
                    cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')")
                    assert {value for _, value in cursor.fetchall()} == {"READ-COMMITTED"}
                wrapper.close()
        finally:
            connection_created.disconnect(receive)
        assert set(threads) == {threading.current_thread()}

    def test_never_beyond_the_cap(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "min_idle": 10}, at_most=2)
        wrapper.ensure_connection()
        eventually(lambda: status_of(wrapper)["open"], lambda number: number == 2)
        rounds(2)
        assert len(pids_of(observer, wrapper)) == 2

    def test_a_closed_pool_stays_empty_until_it_is_used_again(self, make_alias, observer):
        wrapper, other = make_alias(pool={"pool_size": 5, "min_idle": 2}), make_alias()
        look_between_rounds(wrapper.alias)
        other.ensure_connection()
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 2)
        close_pool(wrapper.alias)
        rounds(3)
        assert status_of(wrapper)["open"] == 0
        look_between_rounds(wrapper.alias)
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 2)

    def test_nor_does_one_stay_that_was_about_to_be_opened_when_the_pool_was_closed(self, make_alias):
        wrapper, other = make_alias(pool={"pool_size": 5}), make_alias()
        look(wrapper.alias)
        other.ensure_connection()
        close_pool(wrapper.alias)
        assert open_one_more(wrapper.pool)
        eventually(lambda: status_of(wrapper)["open"], lambda number: number == 0)

    @pytest.mark.parametrize("limit", [{"timeout": 0}, {"max_waiting": 0}], ids=str)
    def test_one_that_is_being_opened_ahead_refuses_nobody(self, limit, make_alias, monkeypatch):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, **limit})
        pool = wrapper.pool
        opened, release = threading.Event(), pool.source.release

        def release_late(entry: Any, *keep: bool) -> None:
            opened.set()
            eventually(lambda: pool.status()["waiting"], lambda number: number == 1)
            release(entry, *keep)

        with ThreadPoolExecutor(1) as executor:
            with monkeypatch.context() as patch:
                patch.setattr(pool.source, "release", release_late)
                future = executor.submit(open_one_more, pool)
                assert opened.wait(30)
            assert look(wrapper.alias)
            assert future.result(30)

    def test_those_near_the_end_of_their_life_are_renewed_while_idle(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 2, "recycle": 2})
        hold_at_once(wrapper.alias, 2)
        first = pids_of(observer, wrapper)
        assert len(first) == 2
        eventually(lambda: pids_of(observer, wrapper) - first, lambda renewed: len(renewed) == 2)
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 2)

    def test_a_server_that_refuses_is_tried_again_later(self, make_alias, observer, monkeypatch, caplog):
        monkeypatch.setattr(tasks, "PAUSE_AFTER_FAILURE", 0)
        monkeypatch.setattr(pressure, "LASTS", 0)
        wrapper = make_alias(pool={"pool_size": 5, "min_idle": 2}, at_most=1)
        with caplog.at_level(logging.INFO, "django_mysqlpool"):
            backend_pid(wrapper)
            eventually(lambda: caplog.text, lambda text: "a connection to keep it warm could not be opened" in text)
        observer.query(f"ALTER USER '{wrapper.settings_dict['USER']}'@'%%' WITH MAX_USER_CONNECTIONS 0")
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 2)


class TestADeadThread:
    def test_what_it_held_goes_back_rolled_back_with_nobody_waiting(self, make_alias, caplog):
        wrapper = make_alias()
        account = Account.objects.create(name="locked")

        def forget() -> None:
            own = connections[wrapper.alias]
            own.set_autocommit(False)
            Account.objects.using(wrapper.alias).filter(pk=account.pk).update(balance=5)

        kept: list[Any] = []
        thread = threading.Thread(target=lambda: (forget(), kept.append(connections[wrapper.alias])), name="forgetful")
        thread.start()
        thread.join()
        eventually(lambda: status_of(wrapper), lambda status: status["out"] == status["open"] == 0)
        with transaction.atomic():
            assert Account.objects.select_for_update(nowait=True).get(pk=account.pk).balance == 0
        account.delete()
        eventually(lambda: caplog.text, lambda text: "never given back by thread 'forgetful'" in text)
        assert f"{__file__}:" in caplog.text
        assert "in forget" in caplog.text

    def test_that_was_not_in_a_transaction_its_connection_is_lent_again(self, make_alias):
        wrapper = make_alias()
        seen: list[Any] = []
        thread = threading.Thread(
            target=lambda: seen.extend([connections[wrapper.alias], backend_pid(connections[wrapper.alias])])
        )
        thread.start()
        thread.join()
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0)
        assert backend_pid(wrapper) == seen[1]


class TestLeaks:
    @holds
    def test_one_is_logged_once_and_once_more_when_it_is_back(self, make_alias, caplog):
        wrapper = make_alias(pool={"leak_after": 0.01})
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        eventually(lambda: caplog.text, lambda text: "has been out for longer" in text)
        rounds(3)
        (told,) = [record.getMessage() for record in caplog.records if "has been out for longer" in record.getMessage()]
        assert f"alias '{wrapper.alias}'" in told
        assert "leak_after = 0.01 s, by MainThread for" in told
        assert "last statement: SELECT" in told
        assert "test_one_is_logged_once_and_once_more_when_it_is_back" in told
        assert "is back after" not in caplog.text
        wrapper.close()
        eventually(lambda: caplog.text.count("is back after"), lambda number: number == 1)

    def test_it_names_the_request(self, make_alias, caplog):
        wrapper = make_alias(pool={"leak_after": 0.01})

        def view(request: Any) -> Any:
            wrapper.ensure_connection()
            eventually(lambda: caplog.text, lambda text: "has been out for longer" in text)
            return django_response()

        from django.http import HttpResponse as django_response

        from django_mysqlpool.middleware import ConnectionReleaseMiddleware

        ConnectionReleaseMiddleware(view)(RequestFactory().get("/slow/"))
        assert "/slow/" in caplog.text

    def test_nothing_is_logged_of_those_that_are_quick_or_unless_asked(self, make_alias, caplog):
        patient, plain = make_alias(pool={"leak_after": 3600}), make_alias()
        patient.ensure_connection()
        plain.ensure_connection()
        rounds(2)
        patient.close()
        plain.close()
        assert not caplog.records


class TestTheThread:
    def test_it_ends_with_the_last_connection_and_the_next_checkout_starts_one(self, make_alias):
        wrapper = make_alias()
        wrapper.ensure_connection()
        assert len(keepers()) == 1
        wrapper.close()
        close_pool()
        eventually(keepers, lambda threads: not threads)
        wrapper.ensure_connection()
        assert len(keepers()) == 1

    def test_there_is_one_for_all_pools(self, make_alias):
        for wrapper in [make_alias() for _ in range(3)]:
            wrapper.ensure_connection()
        assert len(keepers()) == 1

    def test_many_threads_start_one(self, make_alias):
        alias = make_alias().alias
        close_pool()
        eventually(keepers, lambda threads: not threads)
        hold_at_once(alias, 10)
        assert len(keepers()) == 1

    def test_an_error_in_its_work_is_logged_and_it_goes_on(self, make_alias, observer, monkeypatch, caplog):
        failing, sound = make_alias(), make_alias(pool={"idle_timeout": 0.1})
        failing.ensure_connection()

        def fail() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(failing.pool, "reclaim", fail)
        eventually(lambda: caplog.text, lambda text: text.count("maintenance failed, and goes on") >= 2)
        look(sound.alias)
        eventually(lambda: pids_of(observer, sound), lambda pids: not pids)

    def test_it_holds_pools_weakly(self, make_alias):
        wrapper = make_alias()
        look(wrapper.alias)
        pool = wrapper.pool
        assert pool in maintenance._pools
        close_pool(wrapper.alias)
        gone = weakref.ref(pool)
        from django_mysqlpool.mysqlpool.pool.registry import registry

        registry._pools.remove(pool)
        wrapper.bound = None
        del pool
        eventually(lambda: gc.collect() and gone(), lambda pool: pool is None)

    def test_a_stalled_network_holds_up_no_other_pool(self, make_alias, observer, server):
        with Relay(server.host, server.port) as relay:
            stalled = make_alias(
                pool={"pool_size": 2, "idle_timeout": 0.1, "timeout": 1}, options={"connect_timeout": 5}, PORT=relay.port
            )
            other = make_alias(pool={"idle_timeout": 0.1})
            hold_at_once(stalled.alias, 2)
            relay.stall(new=True)
            look(other.alias)
            eventually(lambda: pids_of(observer, other), lambda pids: not pids)
            eventually(lambda: status_of(stalled)["open"], lambda number: number == 0)


def test_all_ages_are_monotonic():
    """The wall clock may be set back and forth."""
    sources = list(Path(django_mysqlpool.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    assert [path.name for path in sources if "time.time(" in path.read_text()] == []


@pytest.fixture
def script(server, observer, pytestconfig) -> Iterator[Callable[..., None]]:
    """Runs a script to its end, as a process of its own on a pool of its own; it must end well and without a word."""
    user, password = observer.create_user()

    def run(
        source: str, *flags: str, port: int | None = None, meanwhile: Callable[[], object] | None = None, **pool: Any
    ) -> None:
        entry = {**server.settings(DATABASE, pool=pool, connect_timeout=2), "USER": user, "PASSWORD": password}
        entry["PORT"] = port or entry["PORT"]
        environment = {
            **os.environ,
            "MYSQLPOOL_TEST_DATABASE": json.dumps(entry),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = tied([sys.executable, *flags, "-c", textwrap.dedent(source)])
        with subprocess.Popen(command, cwd=pytestconfig.rootpath, env=environment, text=True, **pipes) as process:
            if meanwhile is not None:
                assert process.stdout.readline() == "now\n", process.stderr.read()
                meanwhile()
            said = process.communicate("\n", timeout=50)
        assert (process.returncode, *said) == (0, "", "")

    yield run
    eventually(lambda: observer.connections_of(user), lambda pids: not pids)
    observer.query(f"DROP USER '{user}'@'%%'")


BEGIN = """
import django, os, threading, time
django.setup()
from django.db import connection, connections
from django_mysqlpool import pool_status
from django_mysqlpool.mysqlpool.pool.maintenance import PoolMaintenance

def hold():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")

"""


@pytest.mark.parametrize("flags", [(), ("-X", "dev", "-W", "error::ResourceWarning")], ids=["plain", "development"])
class TestExit:
    def test_with_connections_open(self, script, flags):
        script(BEGIN + "hold()\n", *flags)

    def test_with_idle_ones_too(self, script, flags):
        script(BEGIN + "hold()\nconnection.close()\n", *flags)

    def test_inside_atomic(self, script, flags):
        script(BEGIN + "from django.db import transaction\ntransaction.atomic().__enter__()\nhold()\n", *flags)

    def test_with_threads_that_hold_some(self, script, flags):
        script(
            BEGIN + "held = threading.Semaphore(0)\n"
            "def work():\n    hold(); held.release(); threading.Event().wait()\n"
            "for _ in range(5): threading.Thread(target=work, daemon=True).start()\n"
            "for _ in range(5): held.acquire()\n",
            *flags,
        )

    def test_with_the_maintenance_thread_in_the_middle_of_its_work(self, script, flags):
        script(
            BEGIN + "busy = threading.Event()\n"
            "def do(chores):\n    busy.set(); hold(); time.sleep(60)\n"
            "PoolMaintenance.run = do\nhold()\nbusy.wait()\n",
            *flags,
        )

    def test_while_it_opens_connections(self, script, flags):
        script(BEGIN + "hold()\nwhile pool_status()[list(pool_status())[0]]['open'] < 2: pass\n", *flags, min_idle=5)

    def test_with_a_server_that_has_gone_silent(self, script, flags, server):
        with Relay(server.host, server.port) as relay:
            source = "hold()\nconnection.close()\nprint('now', flush=True)\ninput()\n"
            settings = {"port": relay.port, "idle_timeout": 0, "min_idle": 2}
            script(BEGIN + source, *flags, meanwhile=lambda: relay.stall(new=True), **settings)

    def test_while_a_statement_waits_for_a_silent_server(self, script, flags, server):
        with Relay(server.host, server.port) as relay:
            source = (
                "def work():\n    hold(); print('now', flush=True); input(); go.set(); hold()\n"
                "go = threading.Event()\n"
                "threading.Thread(target=work, daemon=True).start()\ngo.wait()\n"
            )
            script(BEGIN + source, *flags, meanwhile=lambda: relay.stall(new=True), port=relay.port)


def test_import_starts_no_thread(script):
    script(
        """
        import threading
        import django_mysqlpool, django_mysqlpool.middleware, django_mysqlpool.threading_utils
        import django_mysqlpool.mysqlpool.pool.pool, django_mysqlpool.mysqlpool.pool.maintenance
        assert threading.enumerate() == [threading.main_thread()]
        """
    )


class TestAFork:
    KEEPERS = "def keepers(): return [t for t in threading.enumerate() if t.name == 'mysqlpool-housekeeper']\n"

    def test_the_child_starts_its_own(self, script):
        script(
            BEGIN
            + self.KEEPERS
            + """
hold()
connection.close()
assert len(keepers()) == 1
child = os.fork()
assert keepers() == []
hold()
assert len(keepers()) == 1
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
        )

    def test_a_parent_with_other_threads_goes_on_at_once(self, script):
        script(
            BEGIN
            + self.KEEPERS
            + """
hold()
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = os.fork()
if child:
    assert len(keepers()) == 1
    assert os.waitpid(child, 0)[1] == 0
else:
    assert keepers() == []
    os._exit(0)
""",
            "-W",
            "ignore::DeprecationWarning",
        )
