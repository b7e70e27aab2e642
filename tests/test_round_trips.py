"""Rule 2: a warm checkout costs no round trip. Counted by a relay between the driver and the server."""

from __future__ import annotations

import threading

import pytest
from django.db import connections, transaction
from django.db.backends.signals import connection_created

from devtools.server import PrivateServer
from tests.helpers import backend_pid, mysqlclient_only
from tests.relay import Relay
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.driver, pytest.mark.server, pytest.mark.mode]


@pytest.fixture
def relay(server):
    with Relay(server.host, server.port) as relay:
        yield relay


def one_query(alias: str, hold: bool = False) -> None:
    """What a request does: checkout, one ORM query, checkin."""
    Account.objects.using(alias).filter(name="nobody").first()
    if not hold:
        connections[alias].close()


def in_new_thread(action) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_a_cycle_is_one_round_trip(make_alias, relay):
    alias = make_alias(PORT=relay.port).alias
    one_query(alias)
    assert relay.count(lambda: one_query(alias)) == 1
    assert relay.count(lambda: in_new_thread(lambda: one_query(alias))) == 1
    assert relay.count(lambda: [one_query(alias) for _ in range(100)]) == 100
    assert relay.connects == 1


@mysqlclient_only("its handshake is what was counted")
def test_the_stock_engine_takes_seven_and_eight(make_alias, relay):
    """What the relay counts is what the design page measured; so the ones above are worth something."""
    alias = make_alias(ENGINE="django.db.backends.mysql", PORT=relay.port).alias
    one_query(alias)
    connects = {"reused": relay.count(lambda: one_query(alias))}
    connects["new"] = relay.count(lambda: in_new_thread(lambda: one_query(alias)))
    assert connects["reused"] >= 5
    assert connects["new"] == connects["reused"] + 1


def test_an_atomic_block_costs_what_it_costs_on_a_persistent_connection(make_alias, relay):
    pooled = make_alias(PORT=relay.port).alias
    stock = make_alias(ENGINE="django.db.backends.mysql", CONN_MAX_AGE=None, PORT=relay.port).alias

    def transfer(alias):
        with transaction.atomic(using=alias):
            Account.objects.using(alias).filter(name="nobody").update(balance=1)
            Account.objects.using(alias).filter(name="nobody").update(balance=2)
        if alias == pooled:
            connections[alias].close()

    for alias in (pooled, stock):
        transfer(alias)
    assert relay.count(lambda: transfer(pooled)) == relay.count(lambda: transfer(stock))


def test_a_checkout_without_a_query_costs_nothing(make_alias, relay):
    wrapper = make_alias(PORT=relay.port)

    def cycle():
        wrapper.ensure_connection()
        wrapper.close()

    cycle()
    assert relay.count(cycle) == 0


def test_long_idle_costs_one_ping(make_alias, relay):
    alias = make_alias(pool={"ping_after": 0}, PORT=relay.port).alias
    one_query(alias)
    assert relay.count(lambda: one_query(alias)) == 2


def test_a_dirty_session_is_reset_at_checkin_and_set_up_once(make_alias, relay):
    wrapper = make_alias(PORT=relay.port)
    one_query(wrapper.alias)
    with wrapper.cursor() as cursor:
        cursor.execute("SET @a = 1")
    # change_user, the character set; then Django's set-up at the next checkout, and the query.
    assert 1 <= relay.count(wrapper.close) <= 3
    assert relay.count(lambda: one_query(wrapper.alias)) == 2
    assert relay.count(lambda: one_query(wrapper.alias)) == 1


def test_always_resets_every_time(make_alias, relay):
    wrapper = make_alias(pool={"reset": "always"}, PORT=relay.port)
    one_query(wrapper.alias)
    wrapper.ensure_connection()
    assert relay.count(wrapper.close) >= 1


def test_no_rollback_where_no_transaction_can_be_open(make_alias, relay):
    wrapper = make_alias(PORT=relay.port)
    one_query(wrapper.alias, hold=True)
    assert relay.count(wrapper.close) == 0
    wrapper.ensure_connection()
    wrapper.set_autocommit(False)
    assert relay.count(wrapper.close) == 1


def test_what_receivers_of_connection_created_ask_is_theirs(make_alias, relay):
    wrapper = make_alias(PORT=relay.port)

    def receiver(connection, **kwargs):
        if connection.alias == wrapper.alias:
            with connection.cursor() as cursor:
                cursor.execute("SET @of_the_receiver = 1")

    connection_created.connect(receiver)
    try:
        one_query(wrapper.alias)
        one_query(wrapper.alias, hold=True)
        # Its SET is set-up, no dirt: nothing is reset.
        assert relay.count(wrapper.close) == 0
        assert relay.count(lambda: one_query(wrapper.alias)) == 2
    finally:
        connection_created.disconnect(receiver)


class TestServerFacts:
    def test_they_are_read_once_for_all_threads(self, make_alias, relay):
        alias = make_alias(PORT=relay.port).alias
        one_query(alias)

        def look():
            features = connections[alias].features
            assert features.supports_json_field
            assert connections[alias].mysql_version
            connections[alias].close()

        assert relay.count(lambda: in_new_thread(look)) == 0

    def test_they_are_those_of_the_stock_engine(self, make_alias):
        pooled, stock = make_alias(), make_alias(ENGINE="django.db.backends.mysql")
        assert pooled.mysql_server_data == stock.mysql_server_data
        for feature in ("has_zoneinfo_database", "is_sql_auto_is_null_enabled", "ignores_table_name_case"):
            assert getattr(pooled.features, feature) == getattr(stock.features, feature)
        with pooled.cursor() as cursor, stock.cursor() as stock_cursor:
            assert pooled.introspection.get_table_list(cursor) == stock.introspection.get_table_list(stock_cursor)
        stock.close()

    def test_they_are_read_again_where_the_server_was_replaced(self, server, make_alias, relay):
        if not isinstance(server, PrivateServer) or not server.is_mariadb:
            pytest.skip("only MariaDB can be started under another version's name")
        wrapper = make_alias(PORT=relay.port)
        user, password = (wrapper.settings_dict[key] for key in ("USER", "PASSWORD"))
        assert wrapper.mysql_version == tuple(map(int, server.version.split(".")))
        features = wrapper.features
        with PrivateServer(server.program, options=["--version=12.3.4-MariaDB"]) as successor:
            connection = successor.connect()
            connection.query(f"CREATE DATABASE {wrapper.settings_dict['NAME']}")
            connection.query(f"GRANT ALL ON *.* TO '{user}'@'%' IDENTIFIED BY '{password}'")
            connection.close()
            relay.redirect(successor.host, successor.port)
            backend_pid(wrapper)
            assert wrapper.mysql_version == (12, 3, 4)
            assert wrapper.features is not features
            wrapper.close()
