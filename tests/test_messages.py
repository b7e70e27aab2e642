"""What errors tell people: true numbers and good advice; and that they arrive whole where they are sent."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import multiprocessing
import pickle
import socket
import threading
from typing import Any

import pytest
import sqlalchemy.exc
import sqlalchemy.pool
from django.db import DatabaseError, OperationalError, connections

from django_mysqlpool import PoolTimeout, PreviousStatementLost
from django_mysqlpool.mysqlpool.errors import copy_of
from django_mysqlpool.mysqlpool.pool import reports
from django_mysqlpool.mysqlpool.pool.faults import Fault, fault_of
from django_mysqlpool.mysqlpool.pool.slot_pool import SlotPool
from tests.helpers import backend_pid, eventually, holds

pytestmark = [pytest.mark.python, pytest.mark.django, pytest.mark.mode]

TIMEOUT = {"alias": "default", "cap": 3, "out": 1, "idle": 0, "opening": 2, "waiting": 4, "holders": ("me for 1.0 s",)}


def again_from_json(error):
    """As Celery's backends that keep JSON do."""
    return type(error)(*json.loads(json.dumps(error.args)))


def through_a_process(error):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(copy.copy, (error,))


class Signature(OperationalError):
    """An exception of a user's own, which its ``args`` do not make again."""

    def __init__(self, number, *, host):
        super().__init__(number, f"no {host}")
        self.host = host


class Wraps(Exception):
    """One that has its text wrapped each time that it is made of its ``args``."""

    def __init__(self, alias):
        super().__init__(f"Alias {alias}: no")


class Hostile:
    """A value that can't be compared, hashed or shown."""

    __hash__ = None

    def __eq__(self, other):
        raise AssertionError("compared")

    def __repr__(self):
        raise AssertionError("shown")

    __str__ = __repr__


class TestErrorsThatTravel:
    @pytest.mark.parametrize(
        "error",
        [PoolTimeout("No connection.", **TIMEOUT), PreviousStatementLost("default")],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize(
        "travel",
        [
            *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
            copy.copy,
            copy.deepcopy,
            copy_of,
            through_a_process,
            lambda e: copy.copy(pickle.loads(pickle.dumps(copy.deepcopy(e)))),
        ],
    )
    def test_arrive_whole(self, error, travel):
        arrived = travel(error)
        assert type(arrived) is type(error)
        assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))

    @pytest.mark.parametrize(
        "error",
        [PoolTimeout("No connection.", **TIMEOUT), PreviousStatementLost("default")],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("again", [lambda e: type(e)(*e.args), again_from_json, lambda e: type(e)(str(e))])
    def test_can_be_made_again(self, error, again):
        made = again(again(error))
        assert str(made) == str(error)
        assert made.alias in {error.alias, None}

    def test_through_celery(self):
        celery = pytest.importorskip("celery.backends.base")
        backend = celery.BaseBackend(pytest.importorskip("celery").Celery(set_as_current=False))
        for error in (PoolTimeout("No connection.", **TIMEOUT), PreviousStatementLost("default")):
            stored = json.loads(json.dumps(backend.prepare_exception(error, serializer="json")))
            assert str(backend.exception_to_python(stored)) == str(error)

    def test_what_is_lost_on_the_way_is_none(self):
        error = PoolTimeout("No connection.")
        assert {name: getattr(error, name) for name in TIMEOUT} == {**dict.fromkeys(TIMEOUT), "holders": ()}

    def test_waiters_are_told_of_an_error_of_any_class(self):
        for error in (
            Signature(7, host="db"),
            Wraps("default"),
            OSError(2, "no such file", "x"),
            OperationalError(Hostile()),
        ):
            copied = copy_of(error)
            assert type(copied) is type(error)
            assert vars(copied) == vars(error)
            if not isinstance(error.args[0], Hostile):
                assert str(copied) == str(error)
            assert copied.__traceback__ is None

    def test_of_which_one_fails_to_connect_all_who_wait_get_one(self, make_alias):
        """Those who wait for a server that is down fare as the one that asks it."""
        wrapper = make_alias(pool={"pool_size": 4, "max_overflow": 0, "timeout": 20})
        asked = threading.Event()

        class Refusing(type(wrapper)):
            def get_new_connection(self, conn_params):
                return super().get_new_connection(conn_params)

            def open_connection(self, conn_params):
                if not asked.is_set():
                    # The first two fail together, which closes the gate: one at a time from then on.
                    asked.set()
                    raise Signature(2003, host="db")
                eventually(lambda: status_of_pool()["waiting"], lambda waiting: waiting >= 2 or ended.is_set())
                ended.set()
                raise Signature(2003, host="db")

        ended = threading.Event()
        alias = wrapper.alias

        def status_of_pool():
            return first.pool.status()

        first = Refusing(wrapper.settings_dict, alias)
        with pytest.raises(Signature):
            first.connect()

        def connect(_):
            with pytest.raises(Signature) as caught:
                Refusing(wrapper.settings_dict, alias).connect()
            return caught.value

        with concurrent.futures.ThreadPoolExecutor(3) as executor:
            errors = list(executor.map(connect, range(3)))
        assert {error.host for error in errors} == {"db"}

    @holds
    def test_of_a_pool_without_connections_its_facts(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0})
        other = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0}, like=wrapper.alias)
        wrapper.ensure_connection()
        with pytest.raises(PoolTimeout) as caught:
            other.ensure_connection()
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.alias, error.cap, error.out, error.idle, error.opening, error.waiting) == (other.alias, 1, 1, 0, 0, 0)
        (holder,) = error.holders
        assert holder.startswith("MainThread for ")


class TestFaultOf:
    @pytest.mark.parametrize(
        "args",
        [
            (),
            ([1, 2],),
            ({"a": 1},),
            ([2006],),
            (None,),
            ("2006",),
            (2006.0,),
            (True,),
            ((2006, "nested"),),
            (OperationalError(2006),),
            (Hostile(),),
            (Hostile(), Hostile()),
            (float("nan"), b"x"),
        ],
        ids=range(13),
    )
    def test_an_error_of_any_args_is_none_of_the_pools(self, args):
        assert fault_of(OperationalError(*args)) is Fault.NONE

    @pytest.mark.parametrize("number", [1047, 1290, 1836, 2006])
    def test_a_text_that_can_not_be_told_does_no_harm(self, number):
        fault_of(OperationalError(number, Hostile()))

    def test_a_statement_that_raises_one_leaves_the_pool_whole(self, make_alias):
        wrapper = make_alias()
        with wrapper.cursor() as cursor, pytest.raises(DatabaseError), pytest.MonkeyPatch.context() as patch:
            lease = wrapper.lease
            error = wrapper.Database.OperationalError([1, 2])
            lease.pool.liveness.note_error(lease, error)
            assert not lease.is_broken
            patch.undo()
            cursor.execute("no statement")
        assert backend_pid(wrapper)


def timeout_of(pool: Any, error: Exception | None) -> PoolTimeout:
    """What a pool tells of a checkout that failed, with the last error of an attempt to connect."""
    return reports.pool_timeout(
        "a", pool.name, "none", pool.status(), pool.reclaimer.leases(), last_connect_error=error, with_stacks=False
    )


class NoWaiting(SlotPool):
    """A default of its own for what the settings then need not say."""

    def __init__(self, *args, max_waiting=0, **kwargs):
        super().__init__(*args, max_waiting=max_waiting, **kwargs)


class Unhurried(sqlalchemy.pool.StaticPool):
    """A pool of the user's own, without a timeout to tell."""

    def _do_get(self):
        raise sqlalchemy.exc.TimeoutError("not today")


class TestPoolTimeout:
    def timeout_of(self, wrapper) -> PoolTimeout:
        with pytest.raises(PoolTimeout) as caught:
            wrapper.ensure_connection()
        return caught.value

    @holds
    @pytest.mark.parametrize("given", [{}, {"max_waiting": 0}])
    def test_a_default_of_a_subclass(self, make_alias, given):
        pool = {"pool_class": NoWaiting, "pool_size": 1, "max_overflow": 0, "timeout": 30, **given}
        wrapper = make_alias(pool=pool)
        wrapper.ensure_connection()
        other = make_alias(pool=pool, like=wrapper.alias)
        assert "max_waiting = 0 threads wait for one already" in str(self.timeout_of(other))

    def test_a_class_without_a_timeout(self, make_alias):
        assert ": none came free (not today)." in str(self.timeout_of(make_alias(pool={"pool_class": Unhurried})))

    def test_a_server_that_does_not_answer(self, make_alias):
        """Connections that are being opened count; and a larger pool would not help."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            entry = {"HOST": "127.0.0.1", "PORT": silent.getsockname()[1], "options": {"connect_timeout": 30}}
            wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 2, "max_waiting": 0}, **entry)
            alias = wrapper.alias
            pool = wrapper.pool

            def connect() -> None:
                with pytest.raises(OperationalError):
                    connections[alias].ensure_connection()

            threads = [threading.Thread(target=connect) for _ in range(2)]
            for thread in threads:
                thread.start()
            eventually(lambda: pool.status()["opening"], lambda opening: opening == 2)
            assert pool.status()["open"] == 0
            error = self.timeout_of(wrapper)
            for thread in threads:
                thread.join(30)
        assert "The cap is 2: 0 out, 0 idle, 2 being opened, 0 waiting." in str(error)
        assert "look at the server" in str(error)
        assert "raise pool_size" not in str(error)
        assert (error.opening, error.out) == (2, 0)
        assert pool.status()["opening"] == 0

    def test_counts_each_connection_once(self, make_alias):
        """However it is looked at while connections are opened, never more than the cap."""
        wrapper = make_alias(pool={"pool_size": 3, "max_overflow": 0, "timeout": 30})
        watched, alias, seen = wrapper.pool, wrapper.alias, set()

        def look(end: threading.Event) -> None:
            while not end.is_set():
                status = watched.status()
                seen.add(status["out"] + status["idle"] + status["opening"])

        def use(_) -> None:
            backend_pid(connections[alias])
            connections[alias].close()

        for _ in range(5):
            with concurrent.futures.ThreadPoolExecutor(7) as executor:
                end = threading.Event()
                looking = executor.submit(look, end)
                list(executor.map(use, range(12)))
                end.set()
                looking.result(30)
            watched.close()
            eventually(watched.status, lambda status: status["open"] == status["opening"] == 0)
        assert max(seen) <= 3
        assert watched.status()["opening"] == 0

    @holds
    def test_where_all_are_out_the_advice_is_to_check_in(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0})
        wrapper.ensure_connection()
        pool = wrapper.pool
        status = pool.status()
        for error in (None, OperationalError(2003, "Can't connect")):
            assert "Give connections back sooner" in str(timeout_of(pool, error))
        assert status["out"] == 1

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (OperationalError(2003, "Can't connect"), "Can't connect"),
            (TimeoutError(), "failed: TimeoutError."),
            (OperationalError(Hostile()), "failed: OperationalError."),
        ],
    )
    def test_tells_why_the_last_attempt_to_connect_failed(self, make_alias, error, told):
        timeout = timeout_of(make_alias().pool, error)
        assert told in str(timeout)
        assert "look at the server" in str(timeout)
