"""Signals about pools: what receivers are told, and that they may use the ORM."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections

from django_mysqlpool import PoolTimeout, close_pool, hold_connection, signals
from django_mysqlpool.mysqlpool.log import tell, unsaid
from django_mysqlpool.mysqlpool.pool import events
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from django_mysqlpool.mysqlpool.pool.pool import Pool
from tests.helpers import backend_pid, eventually, holds, look, status_of, tell_all

pytestmark = [pytest.mark.python, pytest.mark.django, pytest.mark.server]

Connect = Callable[[signals.PoolSignal], list[dict[str, Any]]]


@pytest.fixture
def received() -> Iterator[Connect]:
    """Connects a receiver to a signal, and gives the list of what it is told."""
    connected = []

    def connect(signal: signals.PoolSignal) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []

        def receive(sender: type, signal: signals.PoolSignal, **facts: Any) -> None:
            assert sender is Pool
            told.append(facts)

        signal.connect(receive)
        connected.append((signal, receive))
        return told

    yield connect
    for signal, receive in connected:
        signal.disconnect(receive)


def of(wrapper: Any, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was told about the pool of an alias."""
    tell_all()
    return [facts for facts in told if wrapper.alias in facts["aliases"]]


def test_opened_and_closed(make_alias, received):
    opened, closed = received(signals.connection_opened), received(signals.connection_closed)
    wrapper = make_alias()
    look(wrapper.alias)
    name = wrapper.pool.name
    (facts,) = of(wrapper, opened)
    assert facts.pop("seconds") > 0
    assert facts == {"pool": name, "aliases": [wrapper.alias]}
    close_pool(wrapper.alias)
    assert of(wrapper, closed) == [{"pool": name, "aliases": [wrapper.alias], "reason": "pool_closed"}]


@holds
def test_waited_and_timed_out(make_alias, received):
    waited, timed_out = received(signals.checkout_waited), received(signals.checkout_timed_out)
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.1})
    backend_pid(wrapper)
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(PoolTimeout) as caught:
            executor.submit(look, wrapper.alias).result(30)
        wrapper.pool.source.timeout = 60
        waiting = executor.submit(look, wrapper.alias)
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
        wrapper.close()
        assert waiting.result(30)
    (facts,) = of(wrapper, timed_out)
    assert (facts["alias"], facts["error"]) == (wrapper.alias, caught.value)
    (facts,) = of(wrapper, waited)
    assert facts["alias"] == wrapper.alias
    assert facts["seconds"] > 0


def test_it_is_sent_though_no_connection_is_open(make_alias, received):
    timed_out = received(signals.checkout_timed_out)
    wrapper = make_alias(at_most=1, pool={"timeout": 0.1})
    other = make_alias(like=wrapper.alias, pool={"timeout": 0.2})  # as another process
    with hold_connection(other.alias):
        backend_pid(other)
        maintenance.stop(30)
        with pytest.raises(PoolTimeout):
            look(wrapper.alias)
        eventually(lambda: timed_out, bool)


@holds
def test_a_leak(make_alias, received):
    leaks = received(signals.leak_detected)
    wrapper = make_alias(pool={"leak_after": 0.01})
    backend_pid(wrapper)
    eventually(lambda: of(wrapper, leaks), bool)
    wrapper.close()
    (facts,) = of(wrapper, leaks)
    assert (facts["alias"], facts["thread"]) == (wrapper.alias, threading.current_thread().name)
    assert facts["seconds"] >= 0.01


def test_another_server(make_alias, received):
    changes = received(signals.server_changed)
    wrapper = make_alias()
    look(wrapper.alias)
    close_pool(wrapper.alias)
    look(wrapper.alias)
    assert of(wrapper, changes) == []
    server = wrapper.pool.server
    address, version = server.address, server.version
    server.address = "10.0.0.1:3306"  # as if the last one had been there
    close_pool(wrapper.alias)
    look(wrapper.alias)
    (facts,) = of(wrapper, changes)
    assert (facts["before"], facts["after"]) == (("10.0.0.1:3306", version), (address, version))


def test_a_receiver_may_use_the_orm_on_the_same_alias(make_alias):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 60})
    seen: list[int] = []

    def receive(aliases: list[str], **facts: Any) -> None:
        if wrapper.alias in aliases:
            seen.append(look(wrapper.alias))

    signals.connection_opened.connect(receive)
    try:
        pid = look(wrapper.alias)
        eventually(lambda: seen, lambda pids: pids == [pid])
    finally:
        signals.connection_opened.disconnect(receive)


@pytest.mark.parametrize("kind", ["opened", "closed"])
@pytest.mark.parametrize("closes", [True, False])
def test_it_is_not_told_of_its_own_connections(kind, closes, make_alias):
    wrapper = make_alias(pool={"pool_class": "NullPool"})
    signal: signals.PoolSignal = getattr(signals, f"connection_{kind}")
    seen: list[int] = []

    def receive(aliases: list[str], **facts: Any) -> None:
        if wrapper.alias in aliases:
            seen.append(look(wrapper.alias) if closes else backend_pid(connections[wrapper.alias]))

    signal.connect(receive)
    try:
        look(wrapper.alias)
        for _ in range(5):
            wrapper.close()
            tell()
        eventually(lambda: seen, lambda pids: len(pids) == 1)
    finally:
        signal.disconnect(receive)


def test_no_event_loop_is_kept_from_its_work(make_alias, received):
    """Neither the ORM nor an asynchronous receiver can be used in its thread."""
    threads: list[threading.Thread] = []

    async def receive(**facts: Any) -> None:
        threads.append(threading.current_thread())

    signals.connection_closed.connect(receive)
    try:
        wrapper = make_alias()
        look(wrapper.alias)

        async def close() -> None:
            close_pool(wrapper.alias)
            tell()

        asyncio.run(close())
        eventually(lambda: threads, bool)
        assert threads[0] is not threading.current_thread()
    finally:
        signals.connection_closed.disconnect(receive)


def test_one_that_fails_harms_nobody(make_alias, received):
    def receive(**facts: Any) -> None:
        raise ZeroDivisionError

    signals.connection_opened.connect(receive)
    told = received(signals.connection_opened)
    try:
        wrapper = make_alias()
        look(wrapper.alias)
        assert len(of(wrapper, told)) == 1
    finally:
        signals.connection_opened.disconnect(receive)


def test_nothing_is_put_off_if_nobody_listens(make_alias, received):
    received(signals.connection_opened)
    signals.connection_opened.receivers.clear()
    tell()
    wrapper = make_alias()
    wrapper.ensure_connection()
    connections[wrapper.alias].close()
    assert not [call for call in unsaid if "Signal" in repr(call)]


def test_an_observer_is_called_once_however_often_it_is_connected():
    def observer(kind: str, pool: Any, facts: dict[str, Any]) -> None: ...

    events.observe(observer, "opened", "closed")
    events.observe(observer, "opened")
    assert events.observers["opened"].count(observer) == 1
    events.ignore(observer)
    assert not any(observer in observers for observers in events.observers.values())
