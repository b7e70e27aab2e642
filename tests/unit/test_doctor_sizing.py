"""The doctor's arithmetic: who uses the pools, what the server has room for, and how large a pool should be."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from django_mysqlpool.middleware.asgi import DEFAULT_THREADS
from django_mysqlpool.monitoring.doctor.facts import Account, AliasFacts, PoolFacts, Server, Times, Tls
from django_mysqlpool.monitoring.doctor.findings import findings_of
from django_mysqlpool.monitoring.doctor.sizing import Crew, crew_of, propose, room_for

pytestmark = pytest.mark.unit


class TestTheEnvironment:
    @pytest.mark.parametrize(
        ("environment", "workers", "threads"),
        [
            ({}, None, None),
            ({"WEB_CONCURRENCY": "3"}, 3, None),
            ({"WEB_CONCURRENCY": "many"}, None, None),
            ({"GUNICORN_CMD_ARGS": "--bind=127.0.0.1:1 -w 4 --threads 8"}, 4, 8),
            ({"GUNICORN_CMD_ARGS": "--workers=4"}, 4, 1),
            ({"GUNICORN_CMD_ARGS": "--threads=8", "WEB_CONCURRENCY": "3"}, 3, 8),
            ({"GUNICORN_CMD_ARGS": "-w 4 --threads=8", "WEB_CONCURRENCY": "3"}, 4, 8),
            ({"GUNICORN_CMD_ARGS": "--threads=8"}, 1, 8),
            ({"GUNICORN_CMD_ARGS": "-w2 -k gevent --worker-connections 50"}, 2, 50),
            ({"GUNICORN_CMD_ARGS": "-w2 -k uvicorn_worker.UvicornWorker"}, 2, DEFAULT_THREADS),
            ({"GUNICORN_CMD_ARGS": "--workers=several"}, 1, None),
            ({"GUNICORN_CMD_ARGS": "'"}, 1, None),
            ({"UVICORN_WORKERS": "5"}, 5, DEFAULT_THREADS),
            ({"UVICORN_WORKERS": "5", "WEB_CONCURRENCY": "3"}, 5, DEFAULT_THREADS),
        ],
    )
    def test_its_workers_and_threads(self, environment, workers, threads):
        crew = crew_of(environment)
        assert (crew.workers, crew.threads) == (workers, threads)
        assert all(name in environment for name in crew.source.split(" and ") if name)

    @pytest.mark.parametrize(
        "arguments", ["-w 4 --threads 8", "--workers=4", "--threads=8", "--bind 127.0.0.1:1 -w4 --preload"]
    )
    def test_it_is_as_gunicorn_reads_it(self, arguments):
        config = pytest.importorskip("gunicorn.config").Config()
        parsed = vars(config.parser().parse_args(shlex.split(arguments)))
        crew = crew_of({"GUNICORN_CMD_ARGS": arguments})
        assert (crew.workers, crew.threads) == (parsed["workers"] or 1, parsed["threads"] or 1)

    def test_gunicorn_reads_the_number_of_platforms(self):
        pytest.importorskip("gunicorn")
        script = "from gunicorn.config import Config; print(Config().workers)"
        environment = {**os.environ, "WEB_CONCURRENCY": "7"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == crew_of({"WEB_CONCURRENCY": "7"}).workers

    def test_uvicorn_reads_its_own_name(self, monkeypatch):
        main = pytest.importorskip("uvicorn.main").main
        monkeypatch.setenv("UVICORN_WORKERS", "5")
        context = main.make_context("uvicorn", ["a:b"], **main.context_settings)
        assert context.params["workers"] == crew_of().workers == 5


def facts(alias="default", cap=10, account="shop@%", limit=None, **server) -> AliasFacts:
    """Of an alias whose server has told it all."""
    own = server.pop("own", 2)
    told = {"max_connections": 100, "connections": 2, "most_connections": 2, "refused_as_full": 0, **server}
    return AliasFacts(
        alias,
        pool=PoolFacts(f"pool of {alias}", "QueuePool", cap, cap, None, "request"),
        server=Server("MariaDB 11", True, "db1", 3306, False, 28800, uptime=100, resolves_names=False, **told),
        account=Account(account, limit, {}, True),
        own_connections=own,
    )


class TestTheRoom:
    def test_a_tenth_is_left_to_others(self):
        one = facts()
        assert room_for(one, [one]).least == 90

    def test_what_others_use_is_theirs(self):
        one = facts(connections=32)
        assert room_for(one, [one]).least == 70

    def test_the_account_has_less(self):
        one = facts(limit=20)
        assert room_for(one, [one]).least == 20

    def test_it_is_shared_by_the_pools_of_a_process(self):
        one, other = facts(connections=4), facts("other", cap=20, account="other@%", connections=4)
        elsewhere = facts("elsewhere")
        elsewhere.server.host = "db2"
        room = room_for(one, [one, other, elsewhere])
        assert room.least == 90
        assert room.share(3) == 15
        assert room.processes == 3

    def test_aliases_that_share_a_pool_share_its_room(self):
        one, same = facts(), facts("same")
        same.pool = one.pool
        assert room_for(one, [one, same]).share(3) == 30

    def test_accounts_divide_their_own_limit_only(self):
        limited, free = facts(limit=8), facts("free", account="free@%")
        assert room_for(limited, [limited, free]).share(2) == 4
        assert room_for(free, [limited, free]).share(2) == 22


class TestTheProposal:
    def proposed(self, crew, **how):
        one = facts(**how)
        return propose(crew, room_for(one, [one]))

    def test_a_connection_for_each_thread(self):
        proposal = self.proposed(Crew(4, 8))
        assert (proposal.pool_size, proposal.max_overflow, proposal.total) == (8, 0, 32)

    def test_as_many_as_there_is_room_for(self):
        assert self.proposed(Crew(4, 80)).pool_size == 22
        assert self.proposed(Crew(4, 80, hosts=2)).pool_size == 11
        assert self.proposed(Crew(4, None)).pool_size == 22

    def test_none_without_room_or_workers(self):
        assert self.proposed(Crew(40, 8), limit=30) is None
        assert self.proposed(Crew()) is None


class TestTheFindings:
    def found(self, crew, **how) -> dict[str, str]:
        one = facts(**how)
        one.tls, one.times, one.is_local = Tls("TLSv1.3", "X", False), Times(0.001, 0.001, 0.0001), False
        return {finding.id: finding.level for finding in findings_of(one, crew, room_for(one, [one]))}

    def test_nothing_is_wrong_with_what_fits(self):
        assert self.found(Crew(4, 10), limit=50) == {}

    def test_more_than_the_server_has_room_for(self):
        assert self.found(Crew(10, 10), limit=200) == {"cap-over-server": "warning"}
        assert self.found(Crew(10, 10), limit=50) == {"cap-over-server": "warning", "cap-over-account": "warning"}
        assert self.found(Crew(10, 10), limit=9)["cap-over-account"] == "error"

    def test_more_threads_than_connections_and_the_other_way_round(self):
        assert self.found(Crew(4, 12), limit=50) == {"cap-under-threads": "warning"}
        assert self.found(Crew(4, 8), limit=50) == {"cap-over-threads": "info"}

    @pytest.mark.parametrize(
        ("limit", "change"),
        [
            (60, "Raise pool_size and max_overflow to 12 in all, or set release"),
            (44, "Raise pool_size and max_overflow to 11 in all, run fewer threads, or set release"),
            (40, "Run fewer threads, or set release"),
        ],
    )
    def test_what_to_do_about_more_threads(self, limit, change):
        one = facts(limit=limit)
        one.tls, one.times = Tls("TLSv1.3", "X", False), Times(0.001, 0.001, 0.0001)
        (found,) = findings_of(one, Crew(4, 12), room_for(one, [one]))
        assert found.change.startswith(change)

    def test_a_server_that_is_or_was_full(self):
        assert self.found(Crew(1, 10), limit=50, connections=90)["nearly-full"] == "warning"
        assert self.found(Crew(1, 10), limit=50, refused_as_full=3) == {"was-full": "warning"}
        assert self.found(Crew(1, 10), limit=50, most_connections=100) == {"was-full": "warning"}
        assert self.found(Crew(1, 10), limit=50, most_connections=99, refused_as_full=None) == {}

    def test_no_limits(self):
        assert self.found(Crew(1, 10), limit=50, cap=None) == {"no-cap": "warning"}
        assert self.found(Crew(1, 10)) == {"no-account-limit": "info"}

    def test_the_worst_comes_first(self):
        assert list(self.found(Crew(10, 8), limit=9).values()) == ["error", "warning", "info"]
