"""A server that is full: its refusals are waited out, and processes take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from django.db import OperationalError, connections

from devtools.lifeline import tied
from django_mysqlpool import PoolTimeout
from django_mysqlpool.mysqlpool.pool import pressure
from tests.helpers import DATABASE, eventually, hold_at_once, look, status_of

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]

LIMIT = 5


class Crowd:
    """Processes that share an account, of ``tests/crowd.py``."""

    def __init__(self, entry: dict[str, Any], processes: int, threads: int, requests: int) -> None:
        environment = {
            **os.environ,
            "MYSQLPOOL_TEST_DATABASE": json.dumps(entry),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        command = tied([sys.executable, "-m", "tests.crowd", str(threads), str(requests // processes)])
        self._processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in self._processes:
            assert process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        for process in self._processes:
            process.stdin.write("begin\n")
            process.stdin.flush()

    def answers(self) -> dict[str, int]:
        """What came of the requests; the processes stay, with what they hold."""
        total: dict[str, int] = {}
        for process in self._processes:
            for answer, number in json.loads(process.stdout.readline())["answers"].items():
                total[answer] = total.get(answer, 0) + number
        return total

    def end(self) -> None:
        for process in self._processes:
            process.stdin.close()
            assert process.wait(60) == 0
            process.stdout.close()


MakeCrowd = Callable[..., Crowd]


@pytest.fixture
def crowd(server, observer) -> Iterator[MakeCrowd]:
    """``crowd(processes, threads, requests, like=ALIAS, pool={...})``: by default on an account of its own."""
    with ExitStack() as stack:

        def make(processes: int, threads: int, requests: int, like: str | None = None, **pool: Any) -> Crowd:
            if like is None:
                user, password = observer.create_user(LIMIT)
            else:
                user, password = (connections.settings[like][key] for key in ("USER", "PASSWORD"))
            entry = {**server.settings(DATABASE, pool=pool), "USER": user, "PASSWORD": password}
            made = Crowd(entry, processes, threads, requests)
            stack.callback(made.end)
            return made

        yield make


class TestAFullAccount:
    """Of five connections (error 1226 for the sixth)."""

    @pytest.mark.parametrize(("processes", "threads"), [(4, 4), (8, 16)])
    def test_all_requests_of_many_processes_are_served(self, crowd, processes, threads):
        made = crowd(processes, threads, 800, timeout=240)  # as long as a busy machine may take; the claim is of no error
        made.begin()
        assert made.answers() == {"served": 800}

    def test_idle_connections_make_room_for_a_neighbour(self, crowd, make_alias):
        """The neighbour's refusals are all that there is to see of it."""
        wrapper = make_alias(pool={"pool_size": LIMIT, "max_overflow": 0, "min_idle": LIMIT}, at_most=LIMIT)
        hold_at_once(wrapper.alias, LIMIT)
        assert status_of(wrapper)["idle"] == LIMIT
        neighbour = crowd(1, 2, 10, like=wrapper.alias)
        neighbour.begin()
        assert neighbour.answers() == {"served": 10}

    def test_a_busy_process_leaves_a_turn_to_a_neighbour(self, crowd, make_alias):
        """Its own threads would never let a connection become idle."""
        wrapper = make_alias(pool={"pool_size": LIMIT, "max_overflow": LIMIT}, at_most=LIMIT)
        neighbour = crowd(1, 2, 10, like=wrapper.alias)
        enough, failures = threading.Event(), []

        def work() -> None:
            own = connections[wrapper.alias]
            try:
                while not enough.is_set():
                    with own.cursor() as cursor:
                        cursor.execute("SELECT SLEEP(0.01)")
                    own.close()
            except Exception as error:
                failures.append(error)

        workers = [threading.Thread(target=work) for _ in range(3 * LIMIT)]
        for worker in workers:
            worker.start()
        eventually(lambda: status_of(wrapper), lambda status: status["out"] == LIMIT and status["waiting"])
        neighbour.begin()
        answers = neighbour.answers()
        enough.set()
        for worker in workers:
            worker.join()
        assert answers == {"served": 10}
        assert not failures

    def test_the_own_connection_that_comes_back_is_taken(self, make_alias, monkeypatch):
        # One that has lived for this long may be yielded to a neighbour instead.
        monkeypatch.setattr(pressure, "YIELD_INTERVAL", 60)
        wrapper = make_alias(pool={"pool_size": 2, "timeout": 60}, at_most=1)
        wrapper.ensure_connection()
        pid = wrapper.connection.thread_id()
        got = []

        thread = threading.Thread(target=lambda: got.append(look(wrapper.alias)))
        thread.start()
        eventually(lambda: status_of(wrapper), lambda status: status["waiting"] == 1)
        wrapper.close()
        thread.join()
        assert got == [pid]

    def test_the_time_out_says_what_the_server_said(self, make_alias, server):
        wrapper = make_alias(pool={"timeout": 0.3}, at_most=1)
        entry = connections.settings[wrapper.alias]
        with closing(server.connect(user=entry["USER"], password=entry["PASSWORD"])):
            with pytest.raises(PoolTimeout, match=r"none came free within timeout = 0\.3 s.*max_user_connections"):
                wrapper.ensure_connection()
            assert status_of(wrapper)["open"] == 0
        assert look(wrapper.alias)

    def test_a_pool_class_of_the_users_own_passes_the_refusal_on(self, make_alias, server):
        wrapper = make_alias(pool={"pool_class": "NullPool"}, at_most=1)
        entry = connections.settings[wrapper.alias]
        with (
            closing(server.connect(user=entry["USER"], password=entry["PASSWORD"])),
            pytest.raises(OperationalError, match="max_user_connections"),
        ):
            wrapper.ensure_connection()


class TestAFullServer:
    def test_it_is_waited_for(self, make_alias, server, observer):
        """Error 1040, for an account without the privilege to connect all the same."""
        wrapper = make_alias(pool={"timeout": 60})
        ((before,),) = observer.query("SELECT @@max_connections")
        with ExitStack() as stack:
            stack.callback(observer.query, f"SET GLOBAL max_connections = {before}")
            entry = connections.settings[wrapper.alias]
            observer.query("SET GLOBAL max_connections = 10")
            with pytest.raises(Exception, match="1040"):
                while True:
                    crowding = server.connect(user=entry["USER"], password=entry["PASSWORD"])
                    stack.callback(crowding.close)
            got = []
            thread = threading.Thread(target=lambda: got.append(look(wrapper.alias)))
            thread.start()
            eventually(lambda: refusals(wrapper), lambda number: number >= 2)
            assert not got
            crowding.close()
            stack.pop_all()
            thread.join()
            observer.query(f"SET GLOBAL max_connections = {before}")
        assert got


def refusals(wrapper: Any) -> int:
    """How often the pool has been refused since it last got a connection, as far as it remembers."""
    return int(wrapper.pool.source.queue.backoff.failures)
