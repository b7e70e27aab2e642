"""The engine on the common road: one pool under Django's own backend."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import MySQLdb
import pytest
import sqlalchemy.pool
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.mysql import base
from django.db.backends.signals import connection_created
from sqlalchemy import event

from django_mysqlpool import close_pool, hold_connection, pool_status
from django_mysqlpool.backends.mysqlpool.base import DatabaseWrapper
from django_mysqlpool.mysqlpool.backend import fast_path
from django_mysqlpool.mysqlpool.backend.pooled import PooledWrapper
from tests.helpers import RELEASE, backend_pid, in_thread_holding, status_of, wait_until_gone
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.sqlalchemy, pytest.mark.driver, pytest.mark.server, pytest.mark.mode]


def test_it_is_djangos_backend():
    assert isinstance(connection, base.DatabaseWrapper) or isinstance(connections["default"], base.DatabaseWrapper)
    assert connection.vendor == "mysql"


def test_orm_works():
    account = Account.objects.create(name="Ada", balance=3)
    assert Account.objects.get(pk=account.pk).name == "Ada"
    account.delete()


def test_a_connection_is_used_again(make_alias, observer):
    wrapper = make_alias()
    first = backend_pid(wrapper)
    wrapper.close()
    assert backend_pid(wrapper) == first
    assert observer.connections_of(wrapper.settings_dict["USER"]) == {first}


def test_a_connection_serves_another_thread(make_alias):
    wrapper = make_alias()
    first = backend_pid(wrapper)
    wrapper.close()
    seen = []

    def work():
        seen.append(backend_pid(connections[wrapper.alias]))
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [first]


def test_the_wrapper_holds_the_drivers_own_connection(make_alias):
    wrapper = make_alias()
    wrapper.ensure_connection()
    assert type(wrapper.connection) is MySQLdb.connections.Connection


def test_status_tells_the_numbers_as_json(make_alias):
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 1})
    wrapper.ensure_connection()
    status = status_of(wrapper)
    assert json.loads(json.dumps(status)) == {
        "aliases": [wrapper.alias],
        "address": f"{wrapper.settings_dict['HOST']}:{wrapper.settings_dict['PORT']}",
        "pool_class": "QueuePool",
        "cap": 3,
        "size": 2,
        "open": 1,
        "idle": 0,
        "out": 1,
        "opening": 0,
        "waiting": 0,
        "pins": {},
    }
    wrapper.close()
    assert (status_of(wrapper)["idle"], status_of(wrapper)["out"]) == (1, 0)


def test_a_pool_is_named_by_its_place_and_without_its_password(make_alias):
    wrapper = make_alias()
    wrapper.ensure_connection()
    d = wrapper.settings_dict
    assert f"{d['USER']}@{d['HOST']}:{d['PORT']}/{d['NAME']}" in pool_status()
    assert d["PASSWORD"] not in repr(wrapper.pool) + repr(wrapper.lease.session) + json.dumps(pool_status())


class TestSharing:
    def test_equal_parameters_share_a_pool(self, make_alias):
        one = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        two = make_alias(pool={"pool_size": 1, "max_overflow": 0}, like=one.alias)
        first = backend_pid(one)
        one.close()
        assert backend_pid(two) == first
        assert status_of(one)["aliases"] == sorted([one.alias, two.alias])

    def test_they_share_its_cap(self, make_alias):
        options = {"pool_size": 1, "max_overflow": 0, "timeout": 0}
        one = make_alias(pool=options)
        two = make_alias(pool=options, like=one.alias)
        one.ensure_connection()
        with pytest.raises(OperationalError, match="none came free"):
            two.ensure_connection()

    @pytest.mark.parametrize(
        "other",
        [
            {"pool": {"pool_size": 2}},
            {"NAME": "mysql"},
            {"options": {"charset": "latin1"}},
            {"options": {"isolation_level": "serializable"}},
            {"AUTOCOMMIT": False},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_other_parameters_have_a_pool_of_their_own(self, make_alias, other):
        one = make_alias(pool={"pool_size": 1})
        two = make_alias(**{"pool": {"pool_size": 1}, "like": one.alias, **other})
        one.ensure_connection()
        two.ensure_connection()
        assert one.pool is not two.pool
        assert one.pool.name != two.pool.name

    def test_a_plain_alias_stays_unpooled(self, make_alias, observer):
        pooled = make_alias()
        plain = make_alias(ENGINE="django.db.backends.mysql")
        user = plain.settings_dict["USER"]
        first = backend_pid(plain)
        plain.close()
        assert observer.connections_of(user) <= {first}
        assert backend_pid(plain) != first
        plain.close()
        pooled.ensure_connection()
        assert not hasattr(plain, "pool")
        assert plain.get_connection_params().get("cursorclass") is None
        assert MySQLdb.connect is MySQLdb.Connect

    def test_false_switches_pooling_off(self, make_alias):
        wrapper = make_alias(pool=False, CONN_MAX_AGE=60)
        wrapper.ensure_connection()
        assert wrapper.pool is None
        wrapper.close()
        wrapper.close_pool()


class TestCredentials:
    def test_a_rotated_password_is_used_for_new_connections(self, make_alias, observer):
        wrapper = make_alias()
        wrapper.ensure_connection()
        wrapper.close()
        user = wrapper.settings_dict["USER"]
        observer.query(f"ALTER USER '{user}'@'%%' IDENTIFIED BY 'n3w'")
        wrapper.settings_dict["PASSWORD"] = "n3w"
        before = wrapper.pool
        close_pool(wrapper.alias)
        wrapper.ensure_connection()
        assert wrapper.pool is before

    def test_a_wrong_password_is_the_servers_error(self, make_alias):
        wrapper = make_alias(PASSWORD="wr0ng")
        with pytest.raises(OperationalError, match="Access denied") as caught:
            wrapper.ensure_connection()
        assert "wr0ng" not in str(caught.value)
        assert status_of(wrapper)["out"] == 0

    def test_a_refused_connect_frees_its_place(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0}, PASSWORD="wr0ng")
        for _ in range(3):
            with pytest.raises(OperationalError, match="Access denied"):
                wrapper.ensure_connection()


class TestClosing:
    def test_idle_connections_are_closed(self, make_alias, observer):
        wrapper = make_alias()
        wrapper.ensure_connection()
        wrapper.close()
        close_pool()
        wait_until_gone(observer, wrapper)
        assert status_of(wrapper)["open"] == 0

    def test_what_is_out_is_closed_when_given_back(self, make_alias, observer):
        wrapper = make_alias()
        pid = in_thread_holding(wrapper.alias, lambda: close_pool())
        wait_until_gone(observer, wrapper)
        assert backend_pid(wrapper) != pid

    def test_what_is_out_counts_for_the_cap_until_then(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0})

        def close_and_try():
            close_pool()
            with pytest.raises(OperationalError, match="The cap is 1: 1 out"):
                wrapper.ensure_connection()

        in_thread_holding(wrapper.alias, close_and_try)
        wrapper.ensure_connection()

    def test_the_callers_own_connection_goes_back_first(self, make_alias, observer):
        wrapper = make_alias()
        wrapper.ensure_connection()
        close_pool()
        assert wrapper.connection is None
        wait_until_gone(observer, wrapper)

    def test_an_atomic_block_of_the_callers_goes_on(self, make_alias):
        wrapper = make_alias()
        with transaction.atomic(using=wrapper.alias):
            first = backend_pid(wrapper)
            close_pool()
            assert backend_pid(wrapper) == first

    def test_using_closes_one_alias_pool(self, make_alias):
        one, two = make_alias(), make_alias()
        for wrapper in (one, two):
            wrapper.ensure_connection()
            wrapper.close()
        close_pool(using=one.alias)
        assert (status_of(one)["open"], status_of(two)["open"]) == (0, 1)

    def test_an_unknown_alias_is_djangos_error(self):
        with pytest.raises(connections.exception_class, match="nowhere"):
            close_pool(using="nowhere")

    def test_the_wrapper_has_the_method_too(self, make_alias):
        wrapper = make_alias()
        wrapper.ensure_connection()
        wrapper.close()
        wrapper.close_pool()
        assert status_of(wrapper)["open"] == 0
        wrapper.ensure_connection()


class TestDjangosOwnCalls:
    """What Django's own suite calls outside the usual road, on a connection that the pool has set up."""

    def test_setting_up_again_is_done_again(self, make_alias):
        wrapper = make_alias(options={"isolation_level": "repeatable read"})
        with wrapper.cursor() as cursor, hold_connection(wrapper.alias):
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            wrapper.init_connection_state()
            cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')")
            assert {row[1] for row in cursor.fetchall()} == {"REPEATABLE-READ"}

    def test_a_connection_given_back_is_not_asked_any_more(self, make_alias):
        wrapper = make_alias(pool={"release": "request"})
        wrapper.ensure_connection()
        assert wrapper.is_usable()
        wrapper._close()
        assert not wrapper.is_usable()
        wrapper.connection = None


class TestAtomic:
    def test_closed_inside_atomic_the_connection_is_nobodys(self, make_alias):
        wrapper = make_alias()
        with pytest.raises(transaction.TransactionManagementError), transaction.atomic(using=wrapper.alias):
            first = backend_pid(wrapper)
            wrapper.close()
            backend_pid(wrapper)
        assert backend_pid(wrapper) != first

    def test_a_transaction_left_open_is_rolled_back(self, make_alias):
        wrapper = make_alias()
        wrapper.set_autocommit(False)
        Account.objects.using(wrapper.alias).create(name="left open")
        first = backend_pid(wrapper)
        wrapper.close()
        assert backend_pid(wrapper) == first
        assert wrapper.get_autocommit()
        assert not Account.objects.filter(name="left open").exists()


def test_the_cap_holds_on_the_server_while_connections_are_replaced(make_alias):
    """The server refuses one more than the cap; it counts a closed connection until it has read the farewell."""
    alias = make_alias(pool={"pool_size": 4, "max_overflow": 0}, at_most=4).alias

    def replace(_: int) -> int:
        wrapper = connections[alias]
        with hold_connection(alias):
            pid = backend_pid(wrapper)
            with wrapper.cursor() as cursor:
                cursor.execute(f"XA START '{pid}'")  # costs the connection
        wrapper.close()
        return pid

    with ThreadPoolExecutor(8) as executor:
        pids = list(executor.map(replace, range(400)))
    assert len(set(pids)) == 400


SIMPLE = (bool, int, float, str, list, dict, tuple)


class TestWhatAWarmCheckoutLeavesOut:
    """SQLAlchemy's proxies and Django's connect(), but not where somebody would miss them."""

    @staticmethod
    def close_with_state_left(wrapper: Any) -> None:
        wrapper.needs_rollback = True
        wrapper.savepoint_ids = ["s1"]
        wrapper.close()

    @pytest.mark.skipif(RELEASE == "transaction", reason="about a connection that is held for a request")
    @pytest.mark.parametrize(
        "end", ["check_in", "close", "close_if_unusable_or_obsolete", "close_with_state_left"], ids=str
    )
    def test_the_wrapper_is_as_after_djangos_connect(self, end, make_alias, monkeypatch):
        """So a field that a later Django sets in ``connect()`` is not missed."""
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        connects, connect = [], type(wrapper).connect

        def connect_noted(self: Any) -> None:
            connects.append(self.alias)
            connect(self)

        def state() -> dict[str, Any]:
            wrapper.health_check_done = False  # as Django has it from the beginning of a request on
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
            # (close_at: CONN_MAX_AGE is 0, so it is over at once)
            of_this_checkout = {"lease", "close_at", "unscoped_checkouts"}
            assert wrapper.close_at <= time.monotonic()
            return {
                name: value.copy() if isinstance(value, (list, dict)) else value
                for name, value in vars(wrapper).items()
                if name not in of_this_checkout
            }

        def give_back() -> None:
            method = getattr(self, end, None)
            method(wrapper) if method else getattr(wrapper, end)()
            assert wrapper.lease is None

        state()
        monkeypatch.setattr(type(wrapper), "connect", connect_noted)
        give_back()
        fast = state()
        assert connects == []
        give_back()
        monkeypatch.setattr(fast_path, "CONNECT", None)  # as if somebody had patched its methods
        djangos = state()
        assert connects == [wrapper.alias]
        assert fast == djangos

    def test_one_of_a_new_thread_is_as_after_djangos_connect(self, make_alias, monkeypatch):
        first = make_alias(pool={"pool_size": 1, "max_overflow": 0}, AUTOCOMMIT=True, CONN_HEALTH_CHECKS=True)
        backend_pid(first)
        first.close()
        connects, connect = [], type(first).connect

        def connect_noted(self: Any) -> None:
            connects.append(self.alias)
            connect(self)

        monkeypatch.setattr(type(first), "connect", connect_noted)

        def state() -> dict[str, Any]:
            wrapper = connections.create_connection(first.alias)
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
                # What was never changed is the class' own.
                names = {*vars(wrapper), *vars(PooledWrapper)} - {"__dict__"}
                values = {name: getattr(wrapper, name) for name in names}
                told = {name: value for name, value in values.items() if isinstance(value, (*SIMPLE, type(None)))}
            assert wrapper.close_at <= time.monotonic()
            assert wrapper.bound[1] is first.pool
            wrapper.close()
            return {**told, "close_at": None}

        fast = state()
        assert connects == []
        monkeypatch.setattr(fast_path, "CONNECT", None)
        assert fast == state()
        assert connects == [first.alias]

    @pytest.mark.parametrize("change", ["password", "option", "MYSQLPOOL_ARGUMENTS"])
    def test_one_of_a_new_thread_with_other_settings(self, change, make_alias, observer, monkeypatch):
        first = make_alias(pool={"max_overflow": 0})
        backend_pid(first)
        first.close()
        entry = connections.settings[first.alias]
        if change == "password":
            observer.query(f"ALTER USER '{entry['USER']}'@'%%' IDENTIFIED BY 'another one'")
            entry["PASSWORD"] = "another one"
            first.close_pool()
        elif change == "option":
            entry["OPTIONS"]["init_command"] = "SET @told = 5"
        else:
            monkeypatch.setattr(settings, "MYSQLPOOL_ARGUMENTS", {"pool_size": 3}, raising=False)
        wrapper = connections.create_connection(first.alias)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @told")
            assert cursor.fetchone() == (5 if change == "option" else None,)
        if change == "MYSQLPOOL_ARGUMENTS":
            assert wrapper.pool.cap == 3
        wrapper.close()

    def test_listeners_of_sqlalchemys_events_are_told(self, make_alias):
        told = []
        events = [(lambda *_: told.append("checkout"), "checkout"), (lambda *_: told.append("checkin"), "checkin")]
        wrapper = make_alias(pool={"events": events})
        for _ in range(2):
            backend_pid(wrapper)
            wrapper.check_in()
        assert told == ["checkout", "checkin"] * 2

    @pytest.mark.parametrize("target", ["this pool", "all pools"])
    def test_listeners_that_come_later_are_told_from_then_on(self, make_alias, target):
        """A connection that is out when they come, and goes back when they have gone, is no proxy of SQLAlchemy's."""
        wrapper, told = make_alias(), []
        listened = wrapper.pool.source if target == "this pool" else sqlalchemy.pool.Pool
        backend_pid(wrapper)

        def tell(*_: object) -> None:
            told.append("checkout")

        event.listen(listened, "checkout", tell)
        try:
            wrapper.check_in()
            assert not told
            pid = backend_pid(wrapper)
            assert told == ["checkout"]
        finally:
            event.remove(listened, "checkout", tell)
        wrapper.check_in()
        assert backend_pid(wrapper) == pid
        assert told == ["checkout"]

    @pytest.mark.parametrize("pool_class", ["QueuePool", "NullPool"])
    def test_two_first_connects_at_once_are_no_race(self, make_alias, pool_class):
        """SQLAlchemy 2.0 makes the lists of these events at the first connect, without a lock."""
        source = make_alias(pool={"pool_class": pool_class}).pool.source
        dispatch = getattr(source, "pool", source).dispatch
        for name in ("first_connect", "connect"):
            made = getattr(dispatch, name)
            assert made.for_modify(dispatch) is made

    def test_receivers_of_connection_created_are_told(self, make_alias):
        wrapper, told = make_alias(), []
        backend_pid(wrapper)
        wrapper.check_in()

        def receiver(connection, **kwargs):
            told.append(connection.alias)

        connection_created.connect(receiver)
        try:
            for _ in range(2):
                backend_pid(wrapper)
                wrapper.check_in()
        finally:
            connection_created.disconnect(receiver)
        assert told == [wrapper.alias] * 2

    def test_settings_that_were_changed_in_their_place_are_read(self, make_alias):
        wrapper = make_alias()
        backend_pid(wrapper)
        wrapper.check_in()
        wrapper.settings_dict["OPTIONS"]["init_command"] = "SET @hello = 1"
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @hello")
            assert cursor.fetchone() == (1,)
        wrapper.check_in()

    def test_a_class_that_overrides_a_seam_is_asked(self, make_alias):
        connects = []

        class Wrapper(DatabaseWrapper):
            def get_new_connection(self, conn_params):
                connects.append(self.alias)
                return super().get_new_connection(conn_params)

        alias = make_alias().alias
        wrapper = Wrapper(connections[alias].settings_dict, alias)
        for _ in range(2):
            backend_pid(wrapper)
            wrapper.check_in()
        assert connects == [alias] * 2
        wrapper.close_pool()

    def test_an_event_loop_must_not_connect(self, make_alias):
        wrapper = make_alias()
        backend_pid(wrapper)
        wrapper.check_in()

        async def connect():
            wrapper.ensure_connection()

        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(connect())
        assert status_of(wrapper)["out"] == 0
