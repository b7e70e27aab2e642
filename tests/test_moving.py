"""The pages about moving here: their steps, applied to a small project, do what they promise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from sqlalchemy.pool import QueuePool

from django_mysqlpool.mysqlpool.backend.settings import pool_options
from tests.moving import Page, Project, plain

pytestmark = [pytest.mark.django, pytest.mark.sqlalchemy, pytest.mark.slow]

#: What the pages set, as a cap, and the threads of the server, which are more.
CAP, THREADS = 3, 8
CHECKED = "System check identified no issues (0 silenced)."


@pytest.fixture
def login(server, observer) -> Iterator[dict[str, Any]]:
    """A user and a database of their own, with no limit as yet."""
    user, password = observer.create_user()
    observer.query(f"CREATE DATABASE {user}")
    yield {"NAME": user, "USER": user, "PASSWORD": password, "HOST": server.host, "PORT": server.port}
    observer.query(f"DROP DATABASE {user}")
    observer.query(f"DROP USER '{user}'@'%%'")


@pytest.fixture
def start(tmp_path, login):
    return lambda page: Project(tmp_path, page, login)


def orders(client: httpx.Client, requests: int = 40) -> list[dict[str, int]]:
    """The answers to requests that come more at a time than there are threads to serve them."""

    def order(_: int) -> dict[str, int]:
        answer = client.post("/order/")
        assert answer.status_code == 200, answer.text[:1000]
        return answer.json()

    with ThreadPoolExecutor(2 * THREADS) as executor:
        return list(executor.map(order, range(requests)))


@contextmanager
def limited(observer, user: str, to: int) -> Iterator[None]:
    """The server itself refuses one connection more."""
    observer.query(f"ALTER USER '{user}'@'%%' WITH MAX_USER_CONNECTIONS {to}")
    yield
    observer.query(f"ALTER USER '{user}'@'%%' WITH MAX_USER_CONNECTIONS 0")


def see_that_it_has_moved(project: Project, observer, user: str) -> None:
    """The promise: checked, migrated, pooled, under the cap, returned with each request, and clean."""
    assert project.manage("check", "--fail-level=WARNING") == CHECKED
    project.migrate()
    with limited(observer, user, CAP), project.served(THREADS) as client:
        answers = orders(client)
        (status,) = client.get("/status/").json().values()
        assert (status["cap"], status["out"], status["waiting"]) == (CAP, 0, 0)
        used = {answer["connection"] for answer in answers}
        assert len(used) == CAP
        assert len({answer["thread"] for answer in answers}) > CAP
        client.get("/leave/")
        assert [client.get("/left/").json()["found"] for _ in range(2 * CAP)] == [None] * (2 * CAP)
        assert observer.connections_of(user) == used, "they stay open, for the next requests"


class TestFromConnMaxAge:
    page = Page("from_conn_max_age")

    def test_the_steps(self, start, observer, login):
        project = start(self.page)
        project.migrate()
        with project.served(THREADS) as client:
            pairs = {(answer["thread"], answer["connection"]) for answer in orders(client)}
            assert len(pairs) == len({thread for thread, _ in pairs}) > CAP, "a connection for each thread"
            assert observer.connections_of(login["USER"]) >= {connection for _, connection in pairs}
        refusal, checked = self.page.quoted
        engine, *others = self.page.steps
        project.apply(engine)
        assert refusal in project.manage("check", succeeds=False)
        project.apply(*others)
        assert checked == CHECKED
        see_that_it_has_moved(project, observer, login["USER"])

    def test_a_thread_finds_what_it_left_only_before(self, start):
        """One thread, so that the next request is in the same one."""
        project = start(self.page)
        with project.served(1) as client:
            client.get("/leave/")
            assert client.get("/left/").json() == {"found": 5}
        project.apply(*self.page.steps)
        with project.served(1) as client:
            client.get("/leave/")
            assert client.get("/left/").json() == {"found": None}

    def test_a_loop_gives_back(self, make_alias):
        from django.db import close_old_connections

        wrapper = make_alias(pool={"release": "request"})
        wrapper.ensure_connection()
        assert wrapper.pool.status()["out"] == 1
        close_old_connections()
        assert wrapper.pool.status()["out"] == 0


class TestFromDjangoDbConnectionPool:
    page = Page("from_django_db_connection_pool")

    def test_the_steps(self, start, observer, login):
        project = start(self.page)
        project.migrate()
        with project.served(THREADS) as client:
            assert len({answer["connection"] for answer in orders(client)}) >= CAP
        engine, *others = self.page.steps
        project.apply(engine)
        assert "W005" in project.manage("check")
        project.apply(*others)
        assert self.page.quoted == [CHECKED]
        see_that_it_has_moved(project, observer, login["USER"])

    def test_each_option_has_a_row_and_a_successor(self):
        there = import_module("dj_db_conn_pool.core").pool_container.pool_default_params
        rows = {name.strip("`").lower(): (default, here) for name, default, here, _ in self.page.rows("Each option")}
        assert {name: default for name, (default, _) in rows.items()} == {k: f"`{v!r}`" for k, v in there.items()}
        pool = {here.strip("`"): there[name] for name, (_, here) in rows.items()}
        assert pool_options("each option", {"OPTIONS": {"pool": pool}}) is not None

    def test_the_two_do_not_disturb_each_other(self, make_alias, observer):
        pool_container = import_module("dj_db_conn_pool.core").pool_container
        wrappers = [make_alias(ENGINE="dj_db_conn_pool.backends.mysql"), make_alias()]
        for wrapper in wrappers * 2:
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
            wrapper.close()
        kept = [observer.connections_of(wrapper.settings_dict["USER"]) for wrapper in wrappers]
        pool_container.dispose()
        assert [len(connections) for connections in kept] == [1, 1]
        assert isinstance(pool_container.pop(wrappers[0].alias), QueuePool)

    def test_what_was_ignored_there_is_told(self):
        with pytest.raises(ImproperlyConfigured, match="Did you mean 'pool_size'"):
            pool_options("in capitals", {"OPTIONS": {"pool": {"POOL_SIZE": 5}}})


class TestFromMysqlpool01:
    page = Page("from_mysqlpool_0_1")

    def test_the_steps(self, start, observer, login):
        project = start(self.page)
        warned, checked = self.page.quoted
        said = project.manage("check")
        sentences = [plain(sentence) for sentence in warned.split("?:") if sentence]
        assert len(sentences) == 2
        assert all(sentence in said for sentence in sentences)
        project.migrate()
        with limited(observer, login["USER"], CAP), project.served(THREADS) as client:
            answers = orders(client)
            assert len({answer["connection"] for answer in answers}) == CAP, "its settings work unchanged"
        assert project.manage("shell", "--command", TOTAL).endswith(f"total {5 * len(answers)}, out [0]")
        project.apply(*self.page.steps)
        assert checked == CHECKED
        see_that_it_has_moved(project, observer, login["USER"])

    @pytest.mark.parametrize(
        ("key", "value"), [("poolclass", "QueuePool"), ("listeners", []), ("reset_on_return", "commit")]
    )
    def test_what_is_refused(self, key, value):
        with (
            override_settings(MYSQLPOOL_ARGUMENTS={key: value}),
            pytest.raises(ImproperlyConfigured, match=f"MYSQLPOOL_ARGUMENTS.*'{key}'"),
        ):
            pool_options(f"with {key}", {"OPTIONS": {}})
        assert any(f"`{key}`" in names and "refused" in today for names, today in self.page.rows("Each setting"))

    def test_what_is_unchanged(self):
        values = {"pool_size": 5, "max_overflow": 10, "timeout": 30, "recycle": 119}
        values |= {"use_threadlocal": False, "echo": False, "logging_name": "old", "events": []}
        names = " ".join(names for names, _ in self.page.rows("Each setting"))
        assert all(f"`{name}`" in names for name in values)
        with override_settings(MYSQLPOOL_BACKEND="QueuePool", MYSQLPOOL_ARGUMENTS=values):
            options = pool_options("unchanged", {"OPTIONS": {}})
        assert options is not None
        assert (options.pool_class_name, options.recycle) == ("QueuePool", 119)


#: What the 0.1 page's function says, whose decorator ends its work.
TOTAL = """
from django_mysqlpool import close_pool, pool_status
from shop.work import total_of
print(f"total {total_of(1)}, out {[status['out'] for status in pool_status().values()]}")
close_pool()
"""
