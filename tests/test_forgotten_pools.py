"""Pools that no alias leads to any more are forgotten: of removed aliases, rotated users, tenants that come and go."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections

from django_mysqlpool import close_pool, pool_status
from django_mysqlpool.backends.mysqlpool.base import DatabaseWrapper
from django_mysqlpool.mysqlpool.backend import settings as options
from django_mysqlpool.mysqlpool.backend.aliases import forget_unwanted
from django_mysqlpool.mysqlpool.pool import maintenance as maintenance_module
from django_mysqlpool.mysqlpool.pool import tasks
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from django_mysqlpool.mysqlpool.pool.registry import registry
from tests.helpers import DATABASE, backend_pid, eventually, hold_at_once, holds, look, status_of

pytestmark = pytest.mark.python


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "IDLE_IF_UNWANTED", 0.2)


@pytest.fixture
def users(observer, make_alias):
    """More users with the password of the alias that is made first."""
    made = []

    def make(number: int) -> list[str]:
        for _ in range(number):
            name, _ = observer.create_user()
            made.append(name)
        return made[-number:]

    yield make
    close_pool()
    for name in made:
        observer.query(f"DROP USER '{name}'@'%%'")


def pids_of(observer, user: str) -> set[int]:
    return observer.connections_of(user)


def is_registered(pool: Any) -> bool:
    return pool in registry.pools() or pool in maintenance._pools or pool.name in pool_status()


def serve(alias: str) -> None:
    """A request's query, in a thread that keeps nothing."""
    wrapper = connections[alias]
    backend_pid(wrapper)
    wrapper.close()


@pytest.fixture
def removed():
    """Removes an alias for as long as the block lasts, and this thread's wrapper for good, unless told otherwise."""

    @contextmanager
    def remove(alias: str, *, keep_wrapper: bool = False) -> Iterator[None]:
        if not keep_wrapper:
            del connections[alias]
        settings = connections.settings.pop(alias)
        try:
            yield
        finally:
            connections.settings[alias] = settings
            connections[alias]

    return remove


class TestARemovedAlias:
    def test_its_pool_goes_with_what_was_idle_in_it(self, make_alias, observer, removed):
        wrapper = make_alias(pool={"pool_size": 4})
        other = make_alias()
        hold_at_once(wrapper.alias, 4)
        look(other.alias)
        pool, user = wrapper.pool, wrapper.settings_dict["USER"]
        with removed(wrapper.alias):
            eventually(lambda: pids_of(observer, user), lambda pids: not pids, seconds=10)
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
            assert wrapper.alias not in options._remembered
            assert status_of(other)["open"] == 1

    def test_min_idle_too(self, make_alias, observer, removed):
        wrapper = make_alias(pool={"pool_size": 4, "min_idle": 3})
        look(wrapper.alias)
        pool, user = wrapper.pool, wrapper.settings_dict["USER"]
        eventually(lambda: pids_of(observer, user), lambda pids: len(pids) == 3)
        with removed(wrapper.alias):
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
            assert not pids_of(observer, user)

    @pytest.mark.parametrize("pool_class", ["sqlalchemy.pool.QueuePool", "StaticPool", "AssertionPool", "NullPool"])
    def test_a_pool_of_another_class(self, make_alias, observer, pool_class, removed):
        wrapper = make_alias(pool={"pool_class": pool_class})
        look(wrapper.alias)
        pool, user = wrapper.pool, wrapper.settings_dict["USER"]
        with removed(wrapper.alias):
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
            assert not pids_of(observer, user)

    def test_that_was_closed_before_needs_no_thread(self, make_alias, removed):
        wrapper = make_alias()
        look(wrapper.alias)
        pool = wrapper.pool
        close_pool()
        eventually(lambda: maintenance.thread, lambda thread: thread is None)
        with removed(wrapper.alias):
            assert pool.name not in pool_status()
            assert not is_registered(pool)

    @holds
    def test_what_is_out_stays_until_it_is_given_back(self, make_alias, observer, removed):
        wrapper = make_alias()
        pid = backend_pid(wrapper)
        pool = wrapper.pool
        with removed(wrapper.alias):
            time.sleep(3 * maintenance_module.ROUND)
            assert is_registered(pool)
            assert backend_pid(wrapper) == pid
            wrapper.close()
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)

    def test_that_is_there_again_has_a_pool_again(self, make_alias, observer, removed):
        wrapper = make_alias(pool={"pool_size": 2})
        look(wrapper.alias)
        pool = wrapper.pool
        with removed(wrapper.alias):
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
        # The old wrapper too, which still refers to the pool that was forgotten.
        serve(wrapper.alias)
        backend_pid(wrapper)
        wrapper.close()
        assert wrapper.pool is not pool
        assert wrapper.pool is connections[wrapper.alias].pool
        assert status_of(wrapper)["open"] == 1
        assert len(pids_of(observer, wrapper.settings_dict["USER"])) == 1
        assert not pool.sessions


class TestARotatedUser:
    def test_the_pool_of_the_last_one_goes(self, make_alias, observer, users):
        wrapper = make_alias(pool={"pool_size": 3, "min_idle": 2})
        serve(wrapper.alias)
        first, pool = wrapper.settings_dict["USER"], wrapper.pool
        eventually(lambda: pids_of(observer, first), lambda pids: len(pids) == 2)
        (second,) = users(1)
        wrapper.settings_dict["USER"] = second
        serve(wrapper.alias)
        assert wrapper.pool is not pool
        eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
        assert not pids_of(observer, first)
        eventually(lambda: pids_of(observer, second), lambda pids: len(pids) == 2)
        wrapper.settings_dict["USER"] = first

    def test_with_nobody_asking_for_the_new_one(self, make_alias, observer, users):
        wrapper = make_alias(pool={"pool_size": 3, "min_idle": 2})
        serve(wrapper.alias)
        first, pool = wrapper.settings_dict["USER"], wrapper.pool
        (second,) = users(1)
        connections.settings[wrapper.alias]["USER"] = second
        eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
        assert not pids_of(observer, first)
        connections.settings[wrapper.alias]["USER"] = first

    def test_by_a_wrapper_of_the_users_own(self, make_alias, observer, users, monkeypatch):
        """The settings stay as they are."""
        current = [""]

        class Rotating(DatabaseWrapper):
            def get_connection_params(self):
                return {**super().get_connection_params(), **({"user": current[0]} if current[0] else {})}

        monkeypatch.setattr("django_mysqlpool.backends.mysqlpool.base.DatabaseWrapper", Rotating)
        wrapper = make_alias(pool={"pool_size": 3, "min_idle": 1})
        serve(wrapper.alias)
        first, pool = wrapper.settings_dict["USER"], wrapper.pool
        for current[0] in users(3):
            serve(wrapper.alias)
        eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
        eventually(
            lambda: [name for name, status in pool_status().items() if wrapper.alias in status["aliases"]],
            lambda names: len(names) == 1,
            seconds=10,
        )
        assert not pids_of(observer, first)

    def test_settings_that_change_nothing_for_the_pool_change_nothing(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 3, "min_idle": 2})
        serve(wrapper.alias)
        pool = wrapper.pool
        eventually(lambda: status_of(wrapper)["idle"], lambda idle: idle == 2)
        pids = pids_of(observer, wrapper.settings_dict["USER"])
        connections.settings[wrapper.alias]["TIME_ZONE"] = "Europe/Paris"
        time.sleep(3 * maintenance_module.ROUND)
        assert pids_of(observer, wrapper.settings_dict["USER"]) == pids
        assert is_registered(pool)
        assert pool.aliases.is_wanted()

    def test_tenants_that_take_turns_keep_their_pools_warm(self, make_alias, observer, monkeypatch):
        monkeypatch.setattr(tasks, "IDLE_IF_UNWANTED", 60)
        observer.query("CREATE DATABASE IF NOT EXISTS tenant_b")
        wrapper = make_alias(pool={"pool_size": 2})
        pids = []
        try:
            for name in (DATABASE, "tenant_b") * 3:
                wrapper.settings_dict["NAME"] = name
                pids.append(backend_pid(wrapper))
                wrapper.close()
            time.sleep(2 * maintenance_module.ROUND)
            assert len(set(pids)) == 2
            assert len(pids_of(observer, wrapper.settings_dict["USER"])) == 2
            close_pool(wrapper.alias)  # both: it has led to both
            eventually(lambda: pids_of(observer, wrapper.settings_dict["USER"]), lambda pids: not pids, seconds=10)
        finally:
            wrapper.settings_dict["NAME"] = DATABASE
            observer.query("DROP DATABASE tenant_b")


class TestMany:
    def test_a_thousand_rotated_users(self, make_alias, observer, monkeypatch):
        """Each leads to a pool of its own; what tells them apart here is a harmless option of the driver."""
        wrapper = make_alias(pool={"pool_size": 1, "idle_timeout": 0})
        before = len(registry.pools())
        most = 0
        for number in range(1000):
            wrapper.settings_dict["OPTIONS"]["init_command"] = f"SELECT {number}"
            assert wrapper.pool is not None
            if number % 10 == 0:
                serve(wrapper.alias)
                close_pool(wrapper.alias)
            most = max(most, len(registry.pools()))
        assert most < before + 20
        eventually(lambda: len(registry.pools()), lambda number: number <= before + 1, seconds=10)
        gc.collect()
        eventually(lambda: set(maintenance._pools) - set(registry.pools()), lambda left: not left, seconds=10)
        del wrapper.settings_dict["OPTIONS"]["init_command"]

    def test_a_thousand_aliases(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1})
        settings = dict(connections.settings[wrapper.alias])
        look(wrapper.alias)
        before = len(registry.pools())
        for number in range(1000):
            alias = f"tenant_{number}"
            connections.settings[alias] = {
                **settings,
                "OPTIONS": {**settings["OPTIONS"], "init_command": f"SELECT {number}"},
            }
            assert connections[alias].pool is not None
            if number % 50 == 0:
                serve(alias)
            del connections[alias]
            del connections.settings[alias]
        eventually(lambda: len(pool_status()), lambda number: number <= before, seconds=10)
        assert len(options._remembered) <= len(connections.settings)
        gc.collect()
        eventually(lambda: set(maintenance._pools) - set(registry.pools()), lambda left: not left, seconds=10)

    def test_nothing_of_a_forgotten_pool_stays_in_memory(self, make_alias, removed):
        import weakref

        wrapper = make_alias(pool={"pool_size": 1})
        serve(wrapper.alias)
        gone = weakref.ref(wrapper.pool)
        with removed(wrapper.alias):
            del wrapper
            eventually(lambda: gc.collect() and gone(), lambda pool: pool is None, seconds=20)


class TestNoRace:
    @pytest.mark.parametrize("pool", [{}, {"pool_class": "sqlalchemy.pool.QueuePool"}, {"pool_class": "NullPool"}])
    def test_of_checkouts_with_forgetting(self, make_alias, observer, pool):
        """Threads check out while an alias is removed and put back, and its pool forgotten as soon as it can be."""
        cap = {} if pool.get("pool_class") == "NullPool" else {"pool_size": 2, "max_overflow": 0}
        wrapper = make_alias(pool={**pool, **cap}, at_most=2 if not pool else 0)
        alias, settings, user = wrapper.alias, wrapper.settings_dict, wrapper.settings_dict["USER"]
        look(alias)
        until = time.monotonic() + 3
        served = []

        def serve_often() -> None:
            own = DatabaseWrapper(settings, alias)
            while time.monotonic() < until:
                served.append(backend_pid(own))
                own.close()

        def forget_often() -> int:
            number = 0
            while time.monotonic() < until:
                mine = connections.settings.pop(alias, None)
                for one in tuple(registry.pools()):
                    if alias in one.aliases:
                        one.close()
                forget_unwanted()
                number += 1
                if mine is not None:
                    connections.settings[alias] = mine
            return number

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as executor:
                forgetting = executor.submit(forget_often)
                for work in [executor.submit(serve_often) for _ in range(3)]:
                    work.result(timeout=60)
                assert forgetting.result(timeout=60)
        finally:
            sys.setswitchinterval(interval)
            connections.settings[alias] = settings
        assert served
        assert len(set(served)) > 3, "no pool was closed meanwhile"
        # Every connection is one of a pool that is registered.
        sessions = [session for pool in registry.pools() for session in pool.sessions.copy()]
        known = {session.connection.thread_id() for session in sessions if session.connection is not None}
        eventually(lambda: pids_of(observer, user), lambda pids: pids <= known, seconds=10)
        close_pool(alias)
        eventually(lambda: pids_of(observer, user), lambda pids: not pids, seconds=10)

    def test_a_pool_is_not_forgotten_while_it_connects(self, make_alias, server):
        from tests.relay import Relay

        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"pool_size": 1}, PORT=relay.port)
            pool = wrapper.pool
            relay.hold_connects()
            thread = threading.Thread(target=serve, args=[wrapper.alias])
            thread.start()
            eventually(lambda: relay.held, bool)
            settings = connections.settings.pop(wrapper.alias)
            forget_unwanted()
            assert is_registered(pool)
            relay.resume()
            thread.join(30)
            eventually(lambda: is_registered(pool), lambda is_so: not is_so, seconds=10)
            connections.settings[wrapper.alias] = settings

    def test_one_that_was_found_and_then_forgotten_is_looked_for_again(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 1})
        pool = wrapper.pool
        settings = connections.settings.pop(wrapper.alias)
        forget_unwanted()
        assert pool.is_abandoned
        connections.settings[wrapper.alias] = settings
        pid = backend_pid(wrapper)
        assert wrapper.pool is not pool
        assert pids_of(observer, settings["USER"]) == {pid}
        assert status_of(wrapper)["open"] == 1
