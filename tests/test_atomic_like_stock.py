"""Transactions are Django's own: the same operations on Django's engine and on both of this one's release modes.

After each step of a generated sequence, the committed rows, the hooks that ran, the exceptions and Django's notes about the
connection must be the same. What differs by design is in ``LEFT_OUT``, with the reason.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_mysqlpool import PoolTimeout, hold_connection
from django_mysqlpool.mysqlpool.backend.scope import Scope
from tests.helpers import DATABASE, status_of

pytestmark = [pytest.mark.django, pytest.mark.server]

#: For a longer search: ``MYSQLPOOL_TEST_EXAMPLES=20000``. Without it the sequences are the same in each run.
EXAMPLES = int(os.environ.get("MYSQLPOOL_TEST_EXAMPLES", "0"))

ENGINES = {
    "stock": {"ENGINE": "django.db.backends.mysql"},
    "request": {"pool": {"release": "request", "pool_size": 1, "max_overflow": 0, "timeout": 5}},
    "transaction": {"pool": {"release": "transaction", "pool_size": 1, "max_overflow": 0, "timeout": 5}},
}

OPTIONS = {"init_command": "SET SESSION innodb_lock_wait_timeout = 5"}

#: What Django knows about a connection, and its ``atomic()`` goes by.
NOTES = (
    "autocommit",
    "in_atomic_block",
    "needs_rollback",
    "closed_in_transaction",
    "commit_on_exit",
    "savepoint_state",
    "run_commit_hooks_on_set_autocommit_on",
)
#: These hold objects of Django's, and are compared by what is in them.
OBJECTS = ("savepoint_ids", "atomic_blocks", "run_on_commit", "rollback_exc")

#: Attributes that are not compared, and why that is right.
LEFT_OUT = {
    "connection": "with release='transaction' it is None between statements",
    "close_at": "a pooled connection has no age for Django",
    "errors_occurred": "after an error it may be another connection, which has had none",
    "health_check_done": "the pool looks for itself",
    "health_check_enabled": "the pool looks for itself",
}

HOOKS = ["note", "note", "insert", "raise", "block", "register"]
WITHOUT_ARGUMENTS = [
    "get_autocommit",
    "commit",
    "rollback",
    "close_if_unusable_or_obsolete",
    "ensure_connection",
    "temporary_connection",
]
KEYS = st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(st.just("enter"), st.booleans(), st.sampled_from([False, False, False, True])),
    st.tuples(st.just("enter"), st.booleans(), st.just(False)),
    st.tuples(st.just("exit"), st.sampled_from([False, False, True])),
    st.tuples(st.just("exit"), st.just(False)),
    st.tuples(st.just("insert"), KEYS),
    st.tuples(st.just("insert"), KEYS),
    st.tuples(st.just("save"), KEYS),
    st.tuples(st.just("select")),
    st.tuples(st.just("bad statement")),
    st.tuples(st.just("on_commit"), st.booleans(), st.sampled_from(HOOKS)),
    st.tuples(st.just("set_rollback"), st.booleans()),
    st.tuples(st.just("get_rollback")),
    st.tuples(st.just("savepoint")),
    st.tuples(st.sampled_from(["savepoint_commit", "savepoint_rollback"]), st.integers(0, 2)),
    st.tuples(st.just("close")),
    st.tuples(st.just("connect")),
    st.tuples(st.just("set_autocommit"), st.booleans()),
    st.tuples(st.sampled_from(WITHOUT_ARGUMENTS)),
)


def forget_frames(error: BaseException | None) -> None:
    """Django's engine ends a connection by dropping it, and a traceback would keep it, and its locks."""
    while error is not None:
        error.__traceback__ = None
        forget_frames(error.__context__)
        error = error.__cause__


def named(error: BaseException) -> tuple[Any, ...]:
    return type(error).__module__, type(error).__qualname__, [value for value in error.args if isinstance(value, int)]


@dataclass
class Program:
    """A sequence of operations on one alias, and what is seen after each."""

    alias: str
    observer: Any
    blocks: list[Any] = field(default_factory=list)
    savepoints: list[Any] = field(default_factory=list)
    ran: list[Any] = field(default_factory=list)

    @property
    def connection(self) -> Any:
        return connections[self.alias]

    @property
    def table(self) -> str:
        return f"like_stock_{self.alias}"

    def do(self, step: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            answer = self.operation(*step)
        except Exception as error:
            forget_frames(error)
            answer = named(error)
        return step, answer, list(self.ran), self.rows(), self.notes()

    def rows(self) -> list[Any]:
        return self.observer.query(f"SELECT id FROM {DATABASE}.{self.table} ORDER BY id")

    def notes(self) -> dict[str, Any]:
        connection = self.connection
        notes = {name: getattr(connection, name) for name in NOTES}
        notes["savepoint_ids"] = list(connection.savepoint_ids)
        notes["atomic_blocks"] = [block in self.blocks and self.blocks.index(block) for block in connection.atomic_blocks]
        notes["run_on_commit"] = [
            (sorted(map(str, sids)), hook.__name__, robust) for sids, hook, robust in connection.run_on_commit
        ]
        notes["rollback_exc"] = connection.rollback_exc and named(connection.rollback_exc)
        return notes

    def operation(self, name: str, *args: Any) -> Any:
        own = getattr(self, name.replace(" ", "_"), None)
        return own(*args) if own else getattr(self.connection, name)(*args)

    def execute(self, sql: str, *args: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, args)
            return cursor.fetchall()

    def enter(self, savepoint: bool, durable: bool) -> None:
        block = transaction.atomic(using=self.alias, savepoint=savepoint, durable=durable)
        block.__enter__()
        self.blocks.append(block)

    def exit(self, has_failed: bool) -> None:
        if not self.blocks:
            return
        block, error = self.blocks.pop(), LookupError()
        block.__exit__(*(LookupError, error, None) if has_failed else (None, None, None))

    def insert(self, key: int) -> None:
        self.execute(f"INSERT INTO {self.table} VALUES (%s)", key)

    def save(self, key: int) -> None:
        """As the ORM does it."""
        with transaction.mark_for_rollback_on_error(using=self.alias):
            self.insert(key)

    def select(self) -> Any:
        return self.execute(f"SELECT id FROM {self.table} ORDER BY id")

    def bad_statement(self) -> None:
        self.execute("SELECT nothing FROM nowhere")

    def on_commit(self, robust: bool, kind: str) -> None:
        number = 10 + len(self.ran)

        def hook() -> None:
            self.ran.append((kind, self.connection.get_autocommit(), self.connection.in_atomic_block))
            if kind == "insert":
                self.insert(number)
            elif kind == "raise":
                raise LookupError
            elif kind == "block":
                with transaction.atomic(using=self.alias):
                    self.insert(number)
                    transaction.on_commit(lambda: self.ran.append("in a hook's block"), using=self.alias)
            elif kind == "register":
                transaction.on_commit(lambda: self.ran.append("in a hook"), using=self.alias)

        hook.__name__ = hook.__qualname__ = kind
        transaction.on_commit(hook, using=self.alias, robust=robust)

    def savepoint(self) -> bool:
        sid = self.connection.savepoint()
        self.savepoints.append(sid)
        return sid is None

    def savepoint_commit(self, number: int) -> None:
        if number < len(self.savepoints):
            self.connection.savepoint_commit(self.savepoints[-1 - number])

    def savepoint_rollback(self, number: int) -> None:
        if number < len(self.savepoints):
            self.connection.savepoint_rollback(self.savepoints[-1 - number])

    def temporary_connection(self) -> Any:
        with self.connection.temporary_connection() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {self.table}")
            return cursor.fetchone()

    def may_be_out(self) -> bool:
        """Whether a connection may be out though no statement runs."""
        connection = self.connection
        return connection.in_atomic_block or not connection.autocommit or not connection.settings_dict["AUTOCOMMIT"]

    def end(self) -> None:
        """Have nothing left, whatever state it is in."""
        connection = self.connection
        connection.in_atomic_block = connection.closed_in_transaction = False
        connection.rollback_exc = None
        with suppress(Error):  # where it is closed, and Django has it still
            connection.close()
        del connections[self.alias]
        self.observer.query(f"DELETE FROM {DATABASE}.{self.table}")


#: At the end of each sequence: what comes later is as if nothing had been.
LATER = [
    ("exit", False),
    ("exit", False),
    ("exit", False),
    ("on_commit", False, "note"),
    ("enter", True, False),
    ("on_commit", False, "note"),
    ("insert", 98),
    ("exit", False),
    ("insert", 99),
    ("close",),
    ("enter", True, False),
    ("exit", False),
    ("select",),
]


@pytest.fixture(params=[True, False], ids=["autocommit", "no autocommit"])
def aliases(request, make_alias, observer):
    made = {}
    for name, entry in ENGINES.items():
        alias = make_alias(options=OPTIONS, AUTOCOMMIT=request.param, **entry).alias
        observer.query(f"CREATE TABLE {DATABASE}.like_stock_{alias} (id INT PRIMARY KEY) ENGINE=InnoDB")
        made[name] = alias
    yield made
    for alias in made.values():
        observer.query(f"DROP TABLE {DATABASE}.like_stock_{alias}")


def compare(aliases: dict[str, str], observer: Any, steps: list[tuple[Any, ...]]) -> None:
    programs = {name: Program(alias, observer) for name, alias in aliases.items()}
    try:
        for step in [*steps, *LATER]:
            seen = {name: program.do(step) for name, program in programs.items()}
            for name in ("request", "transaction"):
                assert seen[name] == seen["stock"], name
            program = programs["transaction"]
            if step[0] in {"insert", "save", "select", "set_autocommit"} and not program.may_be_out():
                assert status_of(program.connection)["out"] == 0
    finally:
        for program in programs.values():
            program.end()
    for name in ("request", "transaction"):
        assert status_of(connections[aliases[name]])["out"] == 0


ENTER, EXIT, FAIL = ("enter", True, False), ("exit", False), ("exit", True)
HOOK = ("on_commit", False, "note")
MANUAL = ("set_autocommit", False)

#: Sequences that went wrong once, and their relatives.
NAMED = {
    "closed in a block": [
        ENTER,
        ("select",),
        ("close",),
        EXIT,
        ENTER,
        HOOK,
        EXIT,
        ENTER,
        ("insert", 1),
        EXIT,
        ("insert", 2),
    ],
    "closed in an empty block": [ENTER, HOOK, ("close",), ("insert", 1), EXIT, ("insert", 2)],
    "closed in a block, and told to go on": [ENTER, HOOK, ("close",), ("set_rollback", False), ("insert", 1), EXIT],
    "closed in an inner block": [ENTER, ENTER, ("close",), EXIT, HOOK, ("insert", 1), EXIT, ENTER, ("insert", 2), EXIT],
    "an empty block is obsolete": [ENTER, HOOK, ("close_if_unusable_or_obsolete",), ("insert", 1), EXIT],
    "a hook of a block that failed": [ENTER, ("select",), ("close",), HOOK, FAIL, ENTER, ("insert", 1), EXIT],
    "a hook of an empty block that failed": [ENTER, ("close",), HOOK, FAIL, ENTER, ("insert", 1), EXIT],
    "by hand after a closed block": [ENTER, ("select",), ("close",), EXIT, MANUAL, ("insert", 1), ("commit",)],
    "a closed block within a transaction by hand": [
        MANUAL,
        ENTER,
        ("close",),
        EXIT,
        ("select",),
        ("connect",),
        ("select",),
    ],
    "hooks that wait after a transaction by hand": [
        *(MANUAL, ("enter", False, False), HOOK, EXIT, ("set_autocommit", True)),
        *(("insert", 1), ENTER, ("insert", 2), EXIT),
    ],
    "broken after a transaction by hand": [
        *(("insert", 1), MANUAL, ("enter", False, False), ("save", 1), FAIL, ("set_autocommit", True)),
        *(("select",), ("select",), ENTER, ("insert", 2), EXIT),
    ],
    "committed without a transaction": [("select",), ("commit",), ("close_if_unusable_or_obsolete",), ("select",)],
    "committed while closed": [ENTER, ("close",), HOOK, EXIT, ("commit",), ("select",)],
    "connected in a block": [ENTER, ("insert", 1), ("connect",), ("insert", 2), EXIT],
    "connected in an empty block": [ENTER, HOOK, ("connect",), ("insert", 2), EXIT],
    "connected in a block within a block": [ENTER, ("insert", 1), ENTER, ("insert", 2), ("connect",), EXIT, EXIT],
    "connected in a transaction by hand": [MANUAL, ("insert", 1), ("connect",), ("insert", 2)],
    "connected in a closed block": [ENTER, ("insert", 1), ("close",), ("connect",), ("insert", 2), EXIT],
    "a hook fails": [ENTER, ("insert", 1), ("on_commit", False, "raise"), HOOK, EXIT, ENTER, ("insert", 2), EXIT],
}


#: What reads and sets the attributes of a transaction.
DJANGOS_OWN = [
    *(getattr(BaseDatabaseWrapper, name) for name in ("connect", "close", "commit", "rollback", "set_autocommit")),
    *(getattr(BaseDatabaseWrapper, name) for name in ("savepoint", "savepoint_rollback", "set_rollback", "on_commit")),
    *(BaseDatabaseWrapper.run_and_clear_commit_hooks, BaseDatabaseWrapper.close_if_unusable_or_obsolete),
    *(transaction.Atomic.__enter__, transaction.Atomic.__exit__, transaction.mark_for_rollback_on_error),
]


@pytest.mark.parametrize("function", DJANGOS_OWN, ids=lambda function: function.__name__)
def test_each_attribute_that_django_sets_is_compared(function):
    """Or it is left out with a reason. A later Django may have more."""
    is_set = set(re.findall(r"\b(?:self|connection)\.(\w+)\b(?:\s*=[^=]|\.append\()", inspect.getsource(function)))
    assert is_set <= {*NOTES, *OBJECTS, *LEFT_OUT}


class TestNamed:
    @pytest.mark.parametrize("steps", NAMED.values(), ids=NAMED)
    def test_as_on_djangos_engine(self, aliases, observer, steps):
        compare(aliases, observer, steps)


class TestGenerated:
    @settings(
        max_examples=EXAMPLES or 60,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(steps=st.lists(STEPS, max_size=16))
    @pytest.mark.timeout(0 if EXAMPLES else 120)
    def test_as_on_djangos_engine(self, aliases, observer, steps):
        compare(aliases, observer, steps)


@pytest.fixture(params=["request", "transaction"])
def wrapper(request, make_alias, observer):
    wrapper = make_alias(**ENGINES[request.param], options=OPTIONS)
    observer.query(f"CREATE TABLE {DATABASE}.like_stock_{wrapper.alias} (id INT PRIMARY KEY) ENGINE=InnoDB")
    yield wrapper
    wrapper.check_in()
    observer.query(f"DROP TABLE {DATABASE}.like_stock_{wrapper.alias}")


class TestConnect:
    """``connect()`` takes a new connection on Django's engine; here it may be the same one, as clean as a new one."""

    def test_the_old_session_is_reset(self, wrapper):
        program = Program(wrapper.alias, None)
        with hold_connection(wrapper.alias):
            program.execute("SET @mine = 1")
            wrapper.connect()
            assert program.execute("SELECT @mine") == ((None,),)

    def test_a_cursor_of_the_old_session_does_not_reach_the_new_one(self, wrapper):
        with transaction.atomic(using=wrapper.alias):
            cursor = wrapper.cursor()
            cursor.execute("SELECT 1")
            wrapper.connect()
            with pytest.raises(Error) if wrapper.pool_options.release == "request" else nullcontext():
                cursor.execute("SELECT 2")
        wrapper.close()

    def test_a_pool_that_is_exhausted(self, wrapper, monkeypatch):
        """Not even the old connection is kept: it may be somebody else's by now."""
        wrapper.ensure_connection()
        monkeypatch.setattr(wrapper.pool, "checkout", lambda *_: (_ for _ in ()).throw(PoolTimeout("none")))
        with pytest.raises(PoolTimeout):
            wrapper.connect()
        assert wrapper.connection is None
        assert status_of(wrapper)["out"] == 0

    def test_receivers_may_use_transactions(self, wrapper, observer):
        """Of theirs, not of the block whose first statement connects."""
        program = Program(wrapper.alias, observer)
        keys = itertools.count(1)

        def receive(connection, **_):
            if connection.alias == wrapper.alias:
                with transaction.atomic(using=wrapper.alias):
                    program.insert(next(keys))
                    transaction.on_commit(lambda: program.ran.append("of the receiver"), using=wrapper.alias)

        connection_created.connect(receive)
        try:
            with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
                transaction.on_commit(lambda: program.ran.append("of the block"), using=wrapper.alias)
                program.insert(50)
                assert (len(wrapper.run_on_commit), program.ran) == (1, ["of the receiver"])
                assert program.rows() == [(1,)]
                raise LookupError
        finally:
            connection_created.disconnect(receive)
        assert (program.rows(), program.ran) == ([(1,)], ["of the receiver"])

    def test_a_receiver_that_fails_leaves_the_block_as_it_is(self, make_alias):
        wrapper = make_alias(**ENGINES["transaction"])

        def fail(connection, **_):
            raise LookupError

        with transaction.atomic(using=wrapper.alias), transaction.atomic(using=wrapper.alias, savepoint=False):
            transaction.on_commit(print, using=wrapper.alias)
            before = {name: getattr(wrapper, name) for name in NOTES}
            connection_created.connect(fail)
            try:
                with pytest.raises(LookupError):
                    wrapper.cursor()
            finally:
                connection_created.disconnect(fail)
            assert {name: getattr(wrapper, name) for name in NOTES} == before
            assert len(wrapper.run_on_commit) == 1
            assert status_of(wrapper)["out"] == 0
            wrapper.set_rollback(True)


class TestWorkThatEnds:
    """What Django's engine would keep to the next request of its thread is reset with the end of the work."""

    @pytest.fixture
    def program(self, wrapper, observer):
        return Program(wrapper.alias, observer)

    def test_hooks_that_wait(self, wrapper, program):
        with Scope() as scope:
            for step in [MANUAL, ("enter", False, False), HOOK, EXIT, ("set_autocommit", True)]:
                program.do(step)
            assert len(wrapper.run_on_commit) == 1
        scope.end()
        with Scope() as scope:
            for step in [ENTER, ("insert", 1), EXIT]:
                program.do(step)
        scope.end()
        assert (program.ran, program.rows()) == ([], [(1,)])

    def test_hooks_that_wait_while_statements_are_sent(self, wrapper, program):
        with Scope() as scope:
            for step in [MANUAL, ("enter", False, False), HOOK, EXIT, ("insert", 1), ("set_autocommit", True), ("select",)]:
                program.do(step)
            assert len(wrapper.run_on_commit) == 1
        scope.end()
        assert not wrapper.run_on_commit

    def test_a_broken_transaction(self, wrapper, program):
        with Scope() as scope:
            for step in [("insert", 1), MANUAL, ("enter", False, False), ("save", 1), FAIL, ("set_autocommit", True)]:
                program.do(step)
            assert wrapper.needs_rollback
        scope.end()
        with Scope() as scope:
            program.insert(2)
        scope.end()
        assert program.rows() == [(1,), (2,)]

    def test_an_empty_block_that_was_closed_and_left_open(self, wrapper, program):
        with Scope() as scope:
            for step in [ENTER, HOOK, ("close",)]:
                program.do(step)
        scope.end()
        with Scope() as scope:
            program.insert(1)
        scope.end()
        assert program.rows() == [(1,)]

    def test_a_hook_that_fails_leaves_nothing_out(self, wrapper, program):
        with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
            program.insert(1)
            program.on_commit(False, "raise")
        assert status_of(wrapper)["out"] == (wrapper.pool_options.release == "request")
