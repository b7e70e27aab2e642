"""Rule 3: a borrower gets a clean session. The proof is a comparison with a new connection."""

from __future__ import annotations

import math

import pytest
from django.db import DatabaseError, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MySQLdb.cursors import Cursor, SSCursor

from django_mysqlpool import pool_statistics
from django_mysqlpool.mysqlpool.backend.scope import Scope
from django_mysqlpool.mysqlpool.backend.threads import check_in
from django_mysqlpool.mysqlpool.statements import SessionEffect, analyser_for
from tests import DRIVER
from tests.helpers import (
    OTHER_DATABASE,
    SEVERAL_STATEMENTS,
    Snapshot,
    backend_pid,
    eventually,
    fetch,
    mysqlclient_only,
    snapshot,
    succeeds,
    wait_until_gone,
)
from tests.relay import Relay
from tests.shop.models import Account

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]

# What one borrower may leave behind, and what leaves nothing. ``{other}`` is a database of its own.
STATEMENTS = [
    "SELECT 1",
    "INSERT INTO shop_account (name, balance) VALUES ('of a borrower', 1)",
    "UPDATE shop_account SET balance = balance + 1 WHERE name = 'nobody'",
    "SELECT * FROM shop_account FOR UPDATE",
    "SAVEPOINT s1",
    "SET @a = 1",
    "SELECT @b := 2",
    "SELECT 3 INTO @c",
    "SET SESSION sql_mode = 'ANSI_QUOTES'",
    "SET SESSION time_zone = '+05:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET SESSION TRANSACTION READ ONLY",
    "SET TRANSACTION READ ONLY",
    "SET NAMES latin1",
    "SET SESSION foreign_key_checks = 0",
    "SET SESSION wait_timeout = 1234",
    "SET SESSION group_concat_max_len = 77",
    "SET autocommit = 0",
    "CREATE TEMPORARY TABLE tmp_a (id INT)",
    "CREATE TEMPORARY TABLE shop_account (id INT)",
    "LOCK TABLES shop_account WRITE",
    "LOCK TABLES shop_account READ",
    "SELECT GET_LOCK('lock_a', 0)",
    "DO GET_LOCK('lock_b', 0)",
    "PREPARE p1 FROM 'SELECT 1'",
    "HANDLER shop_account OPEN AS h1",
    "USE {other}",
    "USE information_schema",
    "BEGIN",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
    "XA START 'x1'",
    "XA END 'x1'",
    "XA ROLLBACK 'x1'",
    "SELECT SQL_CALC_FOUND_ROWS * FROM shop_account LIMIT 1",
    "FLUSH TABLES shop_account WITH READ LOCK",
    "SELECT 1; SET @a = 5",
    "SELECT 1 /*! , @d := 9 */",
    "  -- a comment\n set @e = 1",
    "CALL no_such_procedure()",
    "SELECT no_such_table.a FROM no_such_table",
    "DROP TABLE IF EXISTS tmp_z",
    "ALTER DATABASE {other} CHARACTER SET utf8mb4",
    "DELETE FROM shop_account WHERE name = 'of a borrower'",
]
USES = ["execute", "executemany", "raw cursor", "atomic", "set_autocommit(False)"]


def perform(wrapper, use: str, sql: str) -> None:
    """Do something to the session in one of the ways that reach it; the server's refusals are part of the game."""
    sql = sql.format(other=OTHER_DATABASE)
    try:
        if use == "set_autocommit(False)":
            wrapper.set_autocommit(False)
        if use == "raw cursor":
            wrapper.ensure_connection()
            with wrapper.connection.cursor() as cursor:
                cursor.execute(sql)
        elif use == "executemany":
            with wrapper.cursor() as cursor:
                cursor.executemany(sql.replace("%", "%%"), [()])
        elif use == "atomic":
            with transaction.atomic(using=wrapper.alias), wrapper.cursor() as cursor:
                cursor.execute(sql)
        else:
            with wrapper.cursor() as cursor:
                cursor.execute(sql)
    except (DatabaseError, wrapper.Database.Error):
        pass


OPTION_SETS = {
    "no options": {},
    "init_command": {"init_command": "SET sql_mode='STRICT_TRANS_TABLES'"},
    "many options": {
        "init_command": "SET SESSION group_concat_max_len = 4242",
        "sql_mode": "TRADITIONAL",
        "charset": "utf8mb4",
        "collation": "utf8mb4_unicode_ci",
        "isolation_level": "repeatable read",
    },
    "latin1": {"charset": "latin1"},
    "always": {"pool": {"reset": "always"}},
}
steps = st.lists(
    st.tuples(
        st.sampled_from(USES),
        st.sampled_from(STATEMENTS),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
@pytest.mark.usefixtures("other_database")
class TestTheNextBorrower:
    @pytest.fixture
    def borrowers(self, make_alias, options):
        """An alias whose one connection goes from hand to hand, and what a new connection of Django's looks like."""
        stock = make_alias(ENGINE="django.db.backends.mysql", options={k: v for k, v in options.items() if k != "pool"})
        new = Snapshot(snapshot(stock))
        stock.close()
        wrapper = make_alias(
            pool={"pool_size": 1, "max_overflow": 0, "timeout": 5, **options.get("pool", {})},
            options={k: v for k, v in options.items() if k != "pool"},
        )
        return wrapper, new

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(steps=steps)
    def test_sees_a_new_session(self, borrowers, steps):
        wrapper, new = borrowers
        for use, sql in steps:
            perform(wrapper, use, sql)
        check_in(wrapper.alias)
        assert snapshot(wrapper) == new
        wrapper.close()

    @pytest.mark.parametrize("sql", STATEMENTS)
    def test_sees_nothing_of_one_statement(self, borrowers, sql):
        wrapper, new = borrowers
        perform(wrapper, "execute", sql)
        check_in(wrapper.alias)
        assert snapshot(wrapper) == new


def test_what_is_analysed_clean_of_it():
    analyse = analyser_for("10.11.0-MariaDB", "utf8mb4")
    assert [sql for sql in STATEMENTS if analyse(sql).on_session is SessionEffect.CLEAN] == [
        "SELECT 1",
        "INSERT INTO shop_account (name, balance) VALUES ('of a borrower', 1)",
        "UPDATE shop_account SET balance = balance + 1 WHERE name = 'nobody'",
        "SELECT * FROM shop_account FOR UPDATE",
        "SAVEPOINT s1",
        "SELECT SQL_CALC_FOUND_ROWS * FROM shop_account LIMIT 1",
        "SELECT no_such_table.a FROM no_such_table",
        "DELETE FROM shop_account WHERE name = 'of a borrower'",
    ]


class TestReset:
    def test_a_dirty_session_keeps_its_connection(self, make_alias):
        wrapper = make_alias()
        first = backend_pid(wrapper)
        fetch(wrapper, "SELECT @a := 1")
        wrapper.close()
        assert backend_pid(wrapper) == first

    def test_xa_costs_the_connection(self, make_alias):
        wrapper = make_alias()
        first = backend_pid(wrapper)
        fetch(wrapper, "XA START 'gone'")
        wrapper.close()
        assert backend_pid(wrapper) != first

    def test_a_prepared_xa_transaction_stays_prepared_and_nobodys(self, make_alias, observer):
        wrapper = make_alias()
        insert = "INSERT INTO shop_account (name, balance) VALUES ('kept', 1)"
        for step in ("XA START 'kept'", insert, "XA END 'kept'", "XA PREPARE 'kept'"):
            fetch(wrapper, step)
        wrapper.close()
        assert succeeds(wrapper, "SELECT 1")
        wrapper.close()
        user, pid = wrapper.settings_dict["USER"], backend_pid(wrapper)
        eventually(lambda: observer.connections_of(user), lambda ids: ids == {pid})
        observer.query("XA ROLLBACK 'kept'")

    def test_unread_results_cost_the_connection(self, make_alias):
        wrapper = make_alias(options=SEVERAL_STATEMENTS)
        wrapper.ensure_connection()
        first = wrapper.connection.thread_id()
        cursor = wrapper.connection.cursor()
        cursor.execute("SELECT 1; SELECT 2")
        wrapper.close()
        assert backend_pid(wrapper) != first
        assert cursor.fetchone() == (1,)  # read before

    @mysqlclient_only("these are methods of its connections")
    @pytest.mark.parametrize(
        "leave",
        [
            lambda raw: raw.query("SELECT 1"),
            lambda raw: (raw.query("SELECT 1"), raw.use_result()),
            lambda raw: (raw.query("SELECT 1; SELECT 2"), raw.store_result()),
            lambda raw: raw.send_query(b"SELECT 1"),
            lambda raw: (cursor := SSCursor(raw), cursor.execute("SELECT 1")),
        ],
        ids=["query", "use_result", "second result", "send_query", "SSCursor"],
    )
    def test_so_do_those_of_raw_calls(self, make_alias, leave):
        """No cursor of ours has seen these."""
        wrapper = make_alias(options=SEVERAL_STATEMENTS)
        first = backend_pid(wrapper)
        wrapper.ensure_connection()
        left = leave(wrapper.connection)
        wrapper.close()
        assert backend_pid(wrapper) != first
        del left

    def test_so_does_a_reset_that_fails(self, make_alias, observer):
        observer.query("CREATE DATABASE mysqlpool_tests_gone")
        wrapper = make_alias(NAME="mysqlpool_tests_gone")
        first = backend_pid(wrapper)
        fetch(wrapper, "SELECT @a := 1")
        observer.query("DROP DATABASE mysqlpool_tests_gone")
        wrapper.close()
        assert first not in observer.connections_of(wrapper.settings_dict["USER"])

    @mysqlclient_only("PyMySQL's reset does not log in again")
    def test_so_does_a_password_that_has_changed(self, make_alias, observer):
        wrapper = make_alias()
        first = backend_pid(wrapper)
        fetch(wrapper, "SELECT @a := 1")
        user = wrapper.settings_dict["USER"]
        observer.query(f"ALTER USER '{user}'@'%%' IDENTIFIED BY 'n3w'")
        wrapper.close()
        wrapper.settings_dict["PASSWORD"] = "n3w"
        assert backend_pid(wrapper) != first

    def test_options_from_a_file_can_not_be_told_again(self, make_alias, tmp_path):
        file = tmp_path / "my.cnf"
        file.write_text("[client]\ninit-command = SET @from_the_file = 7\n")
        from_the_file = 7 if DRIVER == "mysqlclient" else None  # PyMySQL reads less of it
        wrapper = make_alias(options={"read_default_file": str(file)})
        first = backend_pid(wrapper)
        fetch(wrapper, "SELECT @a := 1")
        wrapper.close()
        assert fetch(wrapper, f"SELECT @a, @from_the_file, CONNECTION_ID() = {first}") == [(None, from_the_file, 0)]

    def test_a_role_is_not_the_next_borrowers(self, make_alias, observer):
        wrapper = make_alias()
        user = wrapper.settings_dict["USER"]
        observer.query("CREATE ROLE reader")
        try:
            observer.query(f"GRANT reader TO '{user}'@'%%'")
            before = fetch(wrapper, "SELECT CURRENT_ROLE()")
            fetch(wrapper, "SET ROLE reader")
            assert fetch(wrapper, "SELECT CURRENT_ROLE()") != before
            wrapper.close()
            assert fetch(wrapper, "SELECT CURRENT_ROLE()") == before
        finally:
            observer.query("DROP ROLE reader")

    def test_init_command_holds_for_every_borrower(self, make_alias):
        wrapper = make_alias(options={"init_command": "SET sql_mode='STRICT_TRANS_TABLES'"})
        for number in range(1000):
            if number % 100 == 50:
                fetch(wrapper, "SELECT @a := 1")
            assert fetch(wrapper, "SELECT @@sql_mode") == [("STRICT_TRANS_TABLES",)]
            wrapper.close()

    def test_a_cursor_class_of_the_users_is_analysed_too(self, make_alias):
        wrapper = make_alias(options={"cursorclass": OwnCursor})
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT @a := 1")
            assert isinstance(cursor.cursor.cursor, OwnCursor)
        wrapper.close()
        assert fetch(wrapper, "SELECT @a") == [(None,)]

    def test_a_cursor_class_may_send_statements_as_a_cursor_is_made(self, make_alias):
        """The connection does not go back in the middle of that, though it is wanted back as soon as it is idle."""
        wrapper = make_alias(options={"cursorclass": AskingCursor})
        scope = Scope()
        scope.end()
        with scope, wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == ((1,),)
        wrapper.close()
        assert pool_statistics()[wrapper.pool.name]["checkouts"] == 1

    def test_a_session_that_was_cut_is_not_reset(self, make_alias, server):
        """Its client library writes to freed memory if it is asked to; this test used to end in an abort."""
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(PORT=relay.port)
            for _ in range(20):
                fetch(wrapper, "SELECT @a := 1")
                relay.redirect(server.host, server.port)
                with pytest.raises(DatabaseError, match="Lost connection|gone away"):
                    fetch(wrapper, "SELECT @a := 1")
                wrapper.close()


class OwnCursor(Cursor):
    """A cursor class of the user's own."""


class AskingCursor(Cursor):
    """One that asks the server something first."""

    def __init__(self, connection):
        super().__init__(connection)
        self.execute("SELECT 2")


class TestTransactionsLeftOpen:
    @pytest.mark.parametrize("begin", ["BEGIN", "START TRANSACTION", "SET autocommit = 0"])
    def test_by_raw_sql(self, make_alias, begin):
        wrapper = make_alias()
        fetch(wrapper, begin)
        Account.objects.using(wrapper.alias).create(name="raw")
        wrapper.close()
        assert not Account.objects.filter(name="raw").exists()
        assert wrapper.get_autocommit()

    def test_by_a_wrapper_that_was_dropped(self, make_alias, caplog):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 5})
        lost = wrapper.copy()
        lost.set_autocommit(False)
        fetch(lost, "INSERT INTO shop_account (name, balance) VALUES ('lost', 1)")
        del lost
        import gc

        gc.collect()
        backend_pid(wrapper)
        assert not Account.objects.filter(name="lost").exists()
        eventually(lambda: caplog.text, lambda text: "never given back by thread 'MainThread'" in text)


class TestLife:
    def test_a_killed_connection_is_never_lent(self, make_alias, observer):
        wrapper = make_alias()
        for _ in range(3):
            first = backend_pid(wrapper)
            wrapper.close()
            observer.query(f"KILL {first}")
            wait_until_gone(observer, wrapper)
            assert backend_pid(wrapper) != first

    def test_the_first_death_makes_its_contemporaries_suspect(self, make_alias, observer):
        wrapper = make_alias()
        others = [wrapper.copy() for _ in range(2)]
        for w in (wrapper, *others):
            w.ensure_connection()
        pids = [w.connection.thread_id() for w in (wrapper, *others)]
        for w in (*others, wrapper):
            w.close()
        observer.query(f"KILL {pids[0]}")
        eventually(lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda ids: pids[0] not in ids)
        backend_pid(wrapper)
        assert sum(session.needs_ping for session in wrapper.pool.sessions) == 2

    def test_recycle_follows_the_servers_wait_timeout(self, make_alias):
        wrapper = make_alias(options={"init_command": "SET SESSION wait_timeout = 100"})
        backend_pid(wrapper)
        assert wrapper.pool.server.lifetime == 90
        assert make_alias(pool={"recycle": 60}).pool.server.lifetime == 60
        assert make_alias(pool={"recycle": -1}).pool.server.lifetime == math.inf

    def test_it_is_at_most_half_an_hour(self, make_alias):
        wrapper = make_alias(options={"init_command": "SET SESSION wait_timeout = 28800"})
        backend_pid(wrapper)
        assert wrapper.pool.server.lifetime == 1800

    def test_lives_end_at_different_times(self, make_alias):
        wrapper = make_alias(pool={"recycle": 1000})
        wrappers = [wrapper, *(wrapper.copy() for _ in range(7))]
        for w in wrappers:
            w.ensure_connection()
        ends = {session.origin.jitter for session in wrapper.pool.sessions}
        for w in wrappers:
            w.close()
        assert len(ends) == 8
        assert all(0.8 <= end <= 1 for end in ends)

    def test_an_overdue_connection_is_replaced(self, make_alias):
        wrapper = make_alias(pool={"recycle": 1e-9})
        first = backend_pid(wrapper)
        wrapper.close()
        assert backend_pid(wrapper) != first
        assert len(wrapper.pool.sessions) == 1
        assert connections[wrapper.alias] is wrapper
