"""django-prometheus: its engine, pooled by the recipe of the documentation, which stands for anybody's engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.mysql.base import CursorWrapper

from tests.companions import needs
from tests.helpers import status_of
from tests.shop.models import Account

needs("django_prometheus")

from prometheus_client import REGISTRY  # noqa: E402

pytestmark = pytest.mark.companion

ENGINE = "tests.companions.prometheus_engine"


def metric(name: str, wrapper, **labels: str) -> float:
    labels = {"alias": wrapper.alias, "vendor": "mysql", **labels}
    return REGISTRY.get_sample_value(f"django_db_{name}", labels) or 0


def test_it_counts_connections_and_not_checkouts(make_alias, observer):
    wrapper = make_alias(ENGINE=ENGINE)
    for _ in range(5):
        Account.objects.using(wrapper.alias).count()
        wrapper.close()
    assert metric("new_connections_total", wrapper) == 1
    assert len(observer.connections_of(wrapper.settings_dict["USER"])) == 1
    assert status_of(wrapper)["out"] == 0


def test_it_counts_and_times_statements(make_alias):
    wrapper = make_alias(ENGINE=ENGINE)
    accounts = Account.objects.using(wrapper.alias)
    accounts.count()  # Django asks the server who it is, first
    before = metric("execute_total", wrapper)
    with transaction.atomic(using=wrapper.alias):
        account = accounts.create(name="counted")
        accounts.filter(pk=account.pk).update(balance=1)
        account.delete()
    assert metric("execute_total", wrapper) == before + 3
    assert metric("query_duration_seconds_count", wrapper) == metric("execute_total", wrapper)
    with wrapper.cursor() as cursor:
        cursor.executemany("UPDATE shop_account SET balance = %s WHERE name = %s", [(1, "none"), (2, "none")])
    assert metric("execute_many_total", wrapper) == 2


def test_it_counts_errors(make_alias):
    wrapper = make_alias(ENGINE=ENGINE)
    with pytest.raises(OperationalError), wrapper.cursor() as cursor:
        cursor.execute("SELECT no_such_column FROM shop_account")
    assert metric("errors_total", wrapper, type="OperationalError") == 1
    wrapper.close()
    assert status_of(wrapper)["out"] == 0


def test_it_counts_connections_that_fail(make_alias, observer):
    wrapper = make_alias(ENGINE=ENGINE, PASSWORD="wrong")
    with pytest.raises(OperationalError):
        wrapper.ensure_connection()
    assert metric("new_connection_errors_total", wrapper) == 1


def test_the_cap_is_kept(make_alias):
    """The server would refuse a third connection."""
    wrapper = make_alias(ENGINE=ENGINE, pool={"pool_size": 2, "max_overflow": 0}, at_most=2)
    here = threading.Barrier(8)

    def work(_):
        here.wait()
        for _ in range(20):
            Account.objects.using(wrapper.alias).count()
            connections[wrapper.alias].close()

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert metric("new_connections_total", wrapper) <= 2
    assert status_of(wrapper)["out"] == 0


def test_sessions_are_cleaned(make_alias):
    """The pool analyses statements below the companion's cursor."""
    wrapper = make_alias(ENGINE=ENGINE, pool={"pool_size": 1, "max_overflow": 0})
    with wrapper.cursor() as cursor:
        assert isinstance(cursor.cursor, CursorWrapper)
        cursor.execute("SET @left_behind = 1")
    wrapper.close()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT @left_behind")
        assert cursor.fetchone() == (None,)
