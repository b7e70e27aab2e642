"""Whoever stands in a seam of Django's is asked at each checkout, a warm one too: a class, or a method in place of one."""

from __future__ import annotations

import functools

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.mysql import base

from django_mysqlpool import auto_close_db
from django_mysqlpool.mysqlpool.backend.wrapper import PooledDatabaseMixin
from tests.helpers import status_of
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.mode]

CHECKOUTS = 3


def calls_at_checkouts(wrapper, calls: list[str]) -> int:
    """How many there are when a wrapper that has been used before checks out some times more."""

    def cycle() -> None:
        with auto_close_db():
            Account.objects.using(wrapper.alias).count()

    cycle()
    calls.clear()
    for _ in range(CHECKOUTS):
        cycle()
    assert status_of(wrapper)["out"] == 0
    return len(calls)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (BaseDatabaseWrapper, "connect"),
        (BaseDatabaseWrapper, "check_settings"),
        (base.DatabaseWrapper, "get_connection_params"),
    ],
)
def test_a_method_in_the_place_of_djangos(make_alias, monkeypatch, owner, name):
    calls: list[str] = []
    djangos = getattr(owner, name)

    @functools.wraps(djangos)
    def instrumented(self, *args, **kwargs):
        calls.append(self.alias)
        return djangos(self, *args, **kwargs)

    wrapper = make_alias()
    monkeypatch.setattr(owner, name, instrumented)
    assert calls_at_checkouts(wrapper, calls) >= CHECKOUTS
    monkeypatch.undo()
    assert calls_at_checkouts(wrapper, calls) == 0


@pytest.mark.parametrize("is_out", [True, False])
def test_a_refusal_to_connect(make_alias, monkeypatch, is_out):
    """Where the connection is out or lies ready, as pytest-django refuses the database to a test without its mark."""
    wrapper = make_alias()
    with auto_close_db():
        wrapper.ensure_connection()
        if not is_out:
            wrapper.check_in()

        def refuse(self):
            raise RuntimeError("no database for this one")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no database"):
            patch.setattr(BaseDatabaseWrapper, "ensure_connection", refuse)
            Account.objects.using(wrapper.alias).count()
        Account.objects.using(wrapper.alias).count()
    assert status_of(wrapper)["out"] == 0


CALLS_OF_CLASS: list[str] = []


class Counted:
    def get_connection_params(self):
        CALLS_OF_CLASS.append(self.alias)
        return super().get_connection_params()


class OutsideThePool(Counted, PooledDatabaseMixin, base.DatabaseWrapper):
    pass


class InsideThePool(PooledDatabaseMixin, Counted, base.DatabaseWrapper):
    pass


@pytest.mark.parametrize("wrapper_class", [OutsideThePool, InsideThePool])
def test_a_class(make_alias, wrapper_class):
    alias = make_alias().alias
    connections[alias] = wrapper_class(connections[alias].settings_dict, alias)
    assert calls_at_checkouts(connections[alias], CALLS_OF_CLASS) >= CHECKOUTS
