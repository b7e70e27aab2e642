"""``release = "transaction"``: a connection is out while SQL runs, and nobody who uses Django notices."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from MySQLdb.cursors import SSCursor

from django_mysqlpool import PoolTimeout, PreviousStatementLost, auto_close_db, hold_connection
from django_mysqlpool.mysqlpool.backend.cursor import watched
from django_mysqlpool.mysqlpool.backend.scope import Scope
from django_mysqlpool.mysqlpool.pool.waiters import SlotRequest, Waiter
from tests.helpers import SEVERAL_STATEMENTS, backend_pid, eventually, status_of
from tests.relay import Relay
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.asgiref, pytest.mark.server, pytest.mark.mode]

INSERT = "INSERT INTO shop_account (name, balance) VALUES (%s, 0)"


@pytest.fixture
def wrapper(make_alias):
    """An alias of this mode with one connection, and the server's facts known."""
    pool = {"release": "transaction", "pool_size": 1, "max_overflow": 0, "timeout": 5}
    wrapper = make_alias(pool=pool, options=SEVERAL_STATEMENTS, at_most=1)
    assert wrapper.mysql_version
    yield wrapper
    wrapper.close()


@pytest.fixture
def accounts(wrapper):
    return Account.objects.using(wrapper.alias)


def out(wrapper) -> int:
    return status_of(wrapper)["out"]


def pins(wrapper) -> dict[str, int]:
    return status_of(wrapper)["pins"]


def fetch(wrapper, sql: str, args=None) -> list[tuple]:
    with wrapper.cursor() as cursor:
        cursor.execute(sql, args)
        return list(cursor.fetchall())


def insert(wrapper, name: str) -> int:
    with wrapper.cursor() as cursor:
        cursor.execute(INSERT, [name])
        return cursor.lastrowid


def somebody_else(wrapper, sql: str = "SELECT 1") -> None:
    """Another thread uses the one connection."""

    def use():
        other = connections[wrapper.alias]
        fetch(other, sql)
        other.close()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()


class TestOutsideATransaction:
    def test_nothing_is_out_between_statements(self, wrapper, accounts):
        account = accounts.create(name="a")
        assert out(wrapper) == 0
        assert accounts.get(pk=account.pk) == account
        assert out(wrapper) == 0
        assert wrapper.connection is None
        assert not pins(wrapper)

    def test_it_is_out_while_a_statement_runs(self, wrapper, observer):
        user = wrapper.settings_dict["USER"]

        def sleep():
            with suppress(DatabaseError):
                fetch(connections[wrapper.alias], "SELECT SLEEP(60)")

        thread = threading.Thread(target=sleep)
        thread.start()
        sleeping = "SELECT id FROM information_schema.processlist WHERE user = %s AND info LIKE '%%SLEEP%%'"
        eventually(lambda: observer.query(sleeping, user), bool)
        assert out(wrapper) == 1
        ((pid,),) = observer.query(sleeping, user)
        observer.query(f"KILL QUERY {pid}")
        thread.join()
        assert out(wrapper) == 0

    def test_two_threads_share_one_connection_between_their_statements(self, wrapper):
        mine = backend_pid(wrapper)
        seen = []

        def ask():
            seen.append(backend_pid(connections[wrapper.alias]))

        for _ in range(2):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            assert backend_pid(wrapper) == mine
        assert seen == [mine, mine]

    def test_a_cursor_serves_many_statements(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute(INSERT, ["a"])
            first = cursor.lastrowid
            assert (cursor.rowcount, out(wrapper)) == (1, 0)
            somebody_else(wrapper)
            cursor.executemany(INSERT, [["b"], ["c"]])
            assert (cursor.rowcount, out(wrapper)) == (2, 0)
            cursor.execute("SELECT name FROM shop_account WHERE id > %s ORDER BY id", [first])
            somebody_else(wrapper)
            assert cursor.fetchone() == ("b",)
            assert out(wrapper) == 0
            assert cursor.fetchall() == (("c",),)

    def test_statements_in_batches(self, wrapper, accounts):
        """mysqlclient puts many into one text, since 2.3.2, if it is told to: one answer follows the other."""
        accounts.bulk_create([Account(id=number, name="before") for number in (1, 2, 3)])
        with wrapper.cursor() as cursor:
            cursor.cursor.cursor.executemany_fallback = "multi"
            cursor.cursor.cursor.max_multi_stmt_count = 2
            cursor.executemany("UPDATE shop_account SET name = %s WHERE id = %s", [["a", 1], ["b", 2], ["c", 3]])
            assert (cursor.rowcount, out(wrapper)) == (3, 0)
            somebody_else(wrapper)
            with pytest.raises(IntegrityError):
                cursor.executemany("UPDATE shop_account SET id = %s WHERE id = %s", [[4, 1], [4, 2], [5, 3]])
        assert out(wrapper) == 0
        somebody_else(wrapper)
        assert list(accounts.order_by("pk").values_list("pk", "name")) == [(2, "b"), (3, "c"), (4, "a")]

    def test_a_cursor_that_is_closed_unused_gives_back(self, wrapper):
        cursor = wrapper.cursor()
        assert out(wrapper) == 1
        cursor.close()
        assert out(wrapper) == 0

    def test_rows_in_chunks(self, wrapper, accounts):
        accounts.bulk_create([Account(name=f"n{number}") for number in range(10)])
        rows = accounts.order_by("pk").iterator(chunk_size=3)
        assert next(rows).name == "n0"
        assert out(wrapper) == 0
        somebody_else(wrapper)
        assert [row.name for row in rows] == [f"n{number}" for number in range(1, 10)]

    def test_an_error_gives_back(self, wrapper, accounts):
        accounts.create(id=7, name="a")
        with pytest.raises(IntegrityError):
            accounts.create(id=7, name="b")
        assert out(wrapper) == 0
        assert accounts.get().name == "a"

    def test_async_code(self, wrapper, accounts):
        async def work():
            account = await accounts.acreate(name="a")
            assert out(wrapper) == 0
            return await accounts.aget(pk=account.pk)

        assert async_to_sync(work)().name == "a"

    def test_queries_are_logged_as_always(self, wrapper, accounts):
        with CaptureQueriesContext(wrapper) as captured:
            accounts.count()
            with transaction.atomic(using=wrapper.alias):
                accounts.count()
        assert [query["sql"][:6] for query in captured] == ["SELECT", "BEGIN", "SELECT", "COMMIT"]

    def test_the_server_dies_between_two_statements(self, wrapper, observer):
        first = backend_pid(wrapper)
        observer.query(f"KILL {first}")
        eventually(lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda ids: not ids)
        assert backend_pid(wrapper) != first


class TestTransactions:
    def test_one_begins_with_its_first_statement(self, wrapper, accounts):
        with transaction.atomic(using=wrapper.alias):
            assert out(wrapper) == 0
            assert not wrapper.get_autocommit()
            accounts.create(name="a")
            assert out(wrapper) == 1
        assert out(wrapper) == 0
        assert accounts.count() == 1

    def test_an_event_loop_must_not_begin_one(self, wrapper):
        async def connect():
            wrapper.ensure_connection()

        with transaction.atomic(using=wrapper.alias):
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(connect())
            assert out(wrapper) == 0

    def test_it_is_rolled_back(self, wrapper, accounts):
        with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
            accounts.create(name="a")
            raise LookupError
        assert out(wrapper) == 0
        assert accounts.count() == 0

    def test_one_without_a_statement(self, wrapper):
        done = []
        with transaction.atomic(using=wrapper.alias):
            transaction.on_commit(lambda: done.append(out(wrapper)), using=wrapper.alias)
        assert done == [0]
        assert wrapper.get_autocommit()

    def test_blocks_in_blocks(self, wrapper, accounts):
        with transaction.atomic(using=wrapper.alias), transaction.atomic(using=wrapper.alias):
            accounts.create(name="outer")
            with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
                accounts.create(name="inner")
                raise LookupError
            with pytest.raises(RuntimeError), transaction.atomic(using=wrapper.alias, durable=True):
                pass
        assert [account.name for account in accounts.all()] == ["outer"]

    def test_an_error_breaks_the_block(self, wrapper, accounts):
        accounts.create(id=7, name="a")
        with transaction.atomic(using=wrapper.alias):
            with pytest.raises(IntegrityError), transaction.atomic(using=wrapper.alias, savepoint=False):
                accounts.create(id=7, name="b")
            assert transaction.get_connection(wrapper.alias).needs_rollback
            with pytest.raises(TransactionManagementError):
                accounts.count()
        assert out(wrapper) == 0
        assert accounts.get().name == "a"

    def test_hooks_run_in_order_after_the_commit_only(self, wrapper, accounts):
        seen = []

        def hook(name):
            return lambda: seen.append((name, accounts.count(), wrapper.get_autocommit()))

        with transaction.atomic(using=wrapper.alias):
            transaction.on_commit(hook("before the first statement"), using=wrapper.alias)
            accounts.create(name="a")
            transaction.on_commit(hook("after it"), using=wrapper.alias)
            assert not seen
        assert seen == [("before the first statement", 1, True), ("after it", 1, True)]
        with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
            transaction.on_commit(hook("never"), using=wrapper.alias)
            accounts.create(name="b")
            raise LookupError
        assert len(seen) == 2
        assert out(wrapper) == 0

    def test_rows_stay_locked_to_the_end(self, wrapper, accounts, observer):
        accounts.create(name="a")
        with transaction.atomic(using=wrapper.alias):
            accounts.select_for_update().get()
            observer.query("SET innodb_lock_wait_timeout = 0")
            with pytest.raises(Exception, match="1205"):
                observer.query(f"SELECT * FROM {wrapper.settings_dict['NAME']}.shop_account FOR UPDATE")

    def test_without_autocommit(self, wrapper, accounts):
        wrapper.set_autocommit(False)
        assert out(wrapper) == 0
        accounts.create(name="a")
        assert out(wrapper) == 1
        wrapper.rollback()
        accounts.create(name="b")
        wrapper.commit()
        wrapper.set_autocommit(True)
        assert out(wrapper) == 0
        assert [account.name for account in accounts.all()] == ["b"]

    def test_an_alias_without_autocommit_keeps_its_connection(self, make_alias):
        wrapper = make_alias(pool={"release": "transaction"}, AUTOCOMMIT=False)
        first = backend_pid(wrapper)
        assert out(wrapper) == 1
        wrapper.commit()
        assert backend_pid(wrapper) == first
        wrapper.rollback()

    def test_a_connection_that_is_closed_within(self, wrapper, accounts):
        with transaction.atomic(using=wrapper.alias):
            cursor = wrapper.cursor()
            cursor.execute("SELECT 1")
            wrapper.close()
            with pytest.raises(DatabaseError):
                cursor.execute("SELECT 2")
            with pytest.raises((DatabaseError, wrapper.Database.Error)):
                accounts.count()
        assert out(wrapper) == 0
        assert accounts.count() == 0

    def test_no_other_connection_is_taken_within(self, make_alias):
        wrapper = make_alias(pool={"release": "transaction", "pool_size": 2, "max_overflow": 0})
        with hold_connection(wrapper.alias):
            backend_pid(wrapper)
            somebody_else(wrapper)
        wrapper.check_in()
        assert status_of(wrapper)["idle"] == 2
        with pytest.raises(LookupError), transaction.atomic(using=wrapper.alias):
            backend_pid(wrapper)
            wrapper.close()
            wrapper.ensure_connection()  # (Django keeps the closed one to the end of the block.)
            assert out(wrapper) == 0
            raise LookupError
        assert backend_pid(wrapper)

    def test_a_server_that_does_not_answer_as_it_begins(self, make_alias):
        wrapper = make_alias(pool={"release": "transaction"}, PORT=1)
        with pytest.raises(DatabaseError), transaction.atomic(using=wrapper.alias):
            assert wrapper.in_atomic_block
            wrapper.cursor()
        assert (wrapper.in_atomic_block, wrapper.get_autocommit(), wrapper.run_on_commit) == (False, True, [])

    def test_it_dies_with_its_connection(self, wrapper, accounts, observer):
        with pytest.raises(DatabaseError), transaction.atomic(using=wrapper.alias):
            accounts.create(name="a")
            observer.query(f"KILL {wrapper.connection.thread_id()}")
            accounts.create(name="b")
        assert accounts.count() == 0
        assert out(wrapper) == 0


class TestWorkThatEnds:
    """What a piece of work leaves open in Django's notes, and never began on the server, is not its successor's."""

    def test_autocommit_is_on_again(self, wrapper, accounts):
        with Scope() as scope:
            wrapper.set_autocommit(False)
        scope.end()
        with Scope() as scope:
            accounts.create(name="a")
        scope.end()
        assert accounts.count() == 1

    @pytest.mark.parametrize("end", ["close", "close_if_unusable_or_obsolete"])
    def test_as_after_djangos_own_end_of_a_request(self, wrapper, end):
        wrapper.set_autocommit(False)
        getattr(wrapper, end)()
        assert wrapper.get_autocommit()

    def test_a_block_that_was_left_open_is_over(self, wrapper, accounts):
        with Scope() as scope:
            transaction.atomic(using=wrapper.alias).__enter__()
        scope.end()
        assert not wrapper.in_atomic_block
        with Scope() as scope, transaction.atomic(using=wrapper.alias):
            accounts.create(name="a")
        scope.end()
        assert accounts.count() == 1

    def test_a_transaction_is_of_the_work_that_began_it(self, wrapper, accounts):
        """Not of the part of it that happens to send the first statement."""
        with transaction.atomic(using=wrapper.alias):
            with Scope() as part:
                accounts.create(name="a")
            part.end()
            assert accounts.count() == 1
        assert accounts.count() == 1

    def test_nor_of_a_function_of_its_own_work(self, wrapper, accounts):
        with transaction.atomic(using=wrapper.alias):
            auto_close_db(accounts.create)(name="a")
            assert out(wrapper) == 1
        assert accounts.count() == 1


class TestPins:
    @pytest.mark.parametrize(
        ("sql", "kind"),
        {
            "SET @a = 1": "SET",
            "SELECT @a := 1": "SELECT",
            "SELECT GET_LOCK('pin', 0)": "SELECT",
            "LOCK TABLES auth_user READ": "LOCK",
            "CREATE TEMPORARY TABLE t1 (a INT)": "CREATE",
            "PREPARE p FROM 'SELECT 1'": "PREPARE",
            "XA START 'pin'": "XA",
        }.items(),
    )
    def test_what_a_session_remembers_keeps_it(self, wrapper, sql, kind):
        @auto_close_db
        def work():
            fetch(wrapper, sql)
            first = wrapper.connection.thread_id()
            assert (out(wrapper), pins(wrapper)) == (1, {kind: 1})
            fetch(wrapper, "SELECT 1")
            assert wrapper.connection.thread_id() == first
            assert pins(wrapper) == {kind: 1}

        work()
        assert out(wrapper) == 0
        assert fetch(wrapper, "SELECT @a, IS_FREE_LOCK('pin')") == [(None, 1)]
        wrapper.close()

    def test_a_lock_from_cursor_to_cursor(self, wrapper, observer):
        assert fetch(wrapper, "SELECT GET_LOCK('job', 0)") == [(1,)]
        assert observer.query("SELECT IS_FREE_LOCK('job')") == [(0,)]
        assert fetch(wrapper, "SELECT RELEASE_LOCK('job')") == [(1,)]
        assert observer.query("SELECT IS_FREE_LOCK('job')") == [(1,)]

    def test_rows_that_are_still_with_the_server(self, wrapper):
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor(watched(SSCursor, *wrapper.driver.cursor_mixins))
        cursor.execute("SELECT 1 UNION SELECT 2")
        assert (out(wrapper), pins(wrapper)) == (1, {"unread result": 1})
        assert cursor.fetchone() == (1,)
        assert out(wrapper) == 1
        assert tuple(cursor.fetchall()) == ((2,),)
        cursor.close()
        assert out(wrapper) == 0

    def test_further_result_sets(self, wrapper):
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2")
            assert (out(wrapper), pins(wrapper)) == (1, {"unread result": 1})
            assert cursor.fetchall() == ((1,),)
            assert cursor.nextset()
            assert cursor.fetchall() == ((2,),)
            assert not cursor.nextset()
            assert out(wrapper) == 0

    def test_further_result_sets_that_nobody_reads(self, wrapper):
        first = backend_pid(wrapper)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2")
        assert out(wrapper) == 0
        assert backend_pid(wrapper) == first

    def test_the_results_of_a_procedure(self, wrapper, observer):
        database = wrapper.settings_dict["NAME"]
        observer.query(f"CREATE PROCEDURE {database}.two() BEGIN SELECT 1; SELECT 2; END")
        try:
            with wrapper.cursor() as cursor:
                cursor.callproc("two")
                assert cursor.fetchall() == ((1,),)
                assert cursor.nextset()
                assert cursor.fetchall() == ((2,),)
            assert pins(wrapper) == {"CALL": 1}
        finally:
            wrapper.close()
            observer.query(f"DROP PROCEDURE {database}.two")

    def test_constraint_checks(self, wrapper):
        with wrapper.constraint_checks_disabled():
            assert fetch(wrapper, "SELECT @@foreign_key_checks") == [(0,)]
        assert fetch(wrapper, "SELECT @@foreign_key_checks") == [(1,)]


class TestThePreviousStatement:
    @pytest.mark.parametrize(
        ("sql", "answer"),
        [
            ("SELECT ROW_COUNT()", [(1,)]),
            ("SHOW WARNINGS", []),
            ("SELECT @@warning_count", [(0,)]),
        ],
    )
    def test_the_answer_is_right_or_there_is_none(self, wrapper, sql, answer):
        insert(wrapper, "a")
        assert fetch(wrapper, sql) == answer
        wrapper.close()
        insert(wrapper, "b")
        somebody_else(wrapper)
        with pytest.raises(PreviousStatementLost, match=f"'{wrapper.alias}'.*transaction.atomic"):
            fetch(wrapper, sql)
        assert out(wrapper) == 0

    @pytest.mark.parametrize(
        "sql", ["SELECT FOUND_ROWS()", "GET DIAGNOSTICS @n = NUMBER", "SHOW ERRORS", "SHOW COUNT(*) WARNINGS"]
    )
    def test_nor_is_there_to_these(self, wrapper, sql):
        insert(wrapper, "a")
        somebody_else(wrapper)
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, sql)

    @pytest.mark.parametrize("sql", ["SELECT LAST_INSERT_ID()", "SELECT @@identity", "SELECT @@last_insert_id"])
    def test_the_last_id(self, wrapper, sql):
        assert insert(wrapper, "a") == fetch(wrapper, sql)[0][0]
        wrapper.close()
        insert(wrapper, "b")
        somebody_else(wrapper)
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, sql)

    def test_the_last_id_is_not_somebody_elses_after_one_more_statement(self, wrapper):
        """It outlives the statement after the INSERT, and so does somebody else's."""
        insert(wrapper, "a")
        somebody_else(wrapper, "INSERT INTO shop_account (name, balance) VALUES ('b', 0)")
        fetch(wrapper, "SELECT 1")
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, "SELECT LAST_INSERT_ID()")
        number = insert(wrapper, "c")
        fetch(wrapper, "SELECT 1")
        assert fetch(wrapper, "SELECT LAST_INSERT_ID()") == [(number,)]

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO shop_account (id, name, balance) VALUES (4711, 'own id', 0)",
            "INSERT INTO shop_account (name, balance) SELECT name, balance FROM shop_account WHERE id = 0",
        ],
        ids=["an id of its own", "no row"],
    )
    @pytest.mark.parametrize("block", [transaction.atomic, hold_connection, None])
    def test_nor_after_an_insert_that_sets_none(self, wrapper, sql, block):
        """The server keeps the older one, which is a former borrower's."""
        somebody_else(wrapper, "INSERT INTO shop_account (name, balance) VALUES ('b', 0)")
        with block(using=wrapper.alias) if block else nullcontext():
            fetch(wrapper, sql)
            with pytest.raises(PreviousStatementLost, match=r"cursor\.lastrowid"):
                fetch(wrapper, "SELECT LAST_INSERT_ID()")
            number = insert(wrapper, "c")
            assert fetch(wrapper, "SELECT LAST_INSERT_ID()") == [(number,)]

    def test_where_nobody_else_has_inserted_the_server_alone_knows(self, wrapper):
        somebody_else(wrapper, "INSERT INTO shop_account (name, balance) VALUES ('b', 0)")
        fetch(wrapper, "SET @a = 1")  # the session is reset, and has no last id
        wrapper.close()
        with transaction.atomic(using=wrapper.alias):
            number = insert(wrapper, "a")
            fetch(wrapper, "INSERT INTO shop_account (id, name, balance) VALUES (4711, 'own id', 0)")
            assert fetch(wrapper, "SELECT LAST_INSERT_ID()") == [(number,)]

    def test_both_in_one_statement(self, wrapper):
        """To ask for the last id first would change what it says of the previous statement."""
        ask = "SELECT LAST_INSERT_ID(), ROW_COUNT()"
        wrapper.close()
        fetch(wrapper, "SET @a = 1")
        wrapper.close()
        with transaction.atomic(using=wrapper.alias):
            number = insert(wrapper, "a")
            assert fetch(wrapper, ask) == [(number, 1)]
        somebody_else(wrapper, "INSERT INTO shop_account (name, balance) VALUES ('b', 0)")
        with transaction.atomic(using=wrapper.alias):
            insert(wrapper, "c")
            with pytest.raises(PreviousStatementLost):
                fetch(wrapper, ask)

    def test_nor_the_last_requests(self, wrapper):
        """Of the same thread, on the same session, which nobody else has used."""
        with Scope() as scope:
            insert(wrapper, "a")
            assert fetch(wrapper, "SELECT LAST_INSERT_ID()")
        scope.end()
        with Scope() as scope:
            with pytest.raises(PreviousStatementLost):
                fetch(wrapper, "SELECT LAST_INSERT_ID()")
            with pytest.raises(PreviousStatementLost):
                fetch(wrapper, "SELECT ROW_COUNT()")
        scope.end()

    def test_nor_where_there_was_no_statement(self, wrapper):
        insert(wrapper, "a")
        lost = []

        def ask():
            try:
                fetch(connections[wrapper.alias], "SELECT LAST_INSERT_ID()")
            except PreviousStatementLost as error:
                lost.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert lost

    @pytest.mark.parametrize("block", [transaction.atomic, hold_connection])
    def test_in_a_block_there_always_is(self, wrapper, block):
        with block(using=wrapper.alias):
            number = insert(wrapper, "a")
            fetch(wrapper, "SELECT 1")
            assert fetch(wrapper, "SELECT LAST_INSERT_ID()") == [(number,)]

    def test_a_session_that_was_lost(self, wrapper, observer):
        insert(wrapper, "a")
        observer.query(f"KILL {next(iter(observer.connections_of(wrapper.settings_dict['USER'])))}")
        eventually(lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda ids: not ids)
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, "SELECT LAST_INSERT_ID()")

    def test_a_reset_session(self, wrapper):
        insert(wrapper, "a")
        fetch(wrapper, "SET @a = 1")
        wrapper.close()
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, "SELECT LAST_INSERT_ID()")

    @pytest.mark.parametrize("sql", ["SELECT LAST_INSERT_ID()", "SELECT ROW_COUNT()"])
    def test_nor_after_a_close(self, wrapper, sql):
        """In no scope it is what ends a piece of work."""
        insert(wrapper, "a")
        wrapper.close()
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, sql)

    def test_nor_after_a_ping(self, make_alias):
        wrapper = make_alias(pool={"release": "transaction", "pool_size": 1, "max_overflow": 0, "ping_after": 0})
        insert(wrapper, "a")
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, "SELECT ROW_COUNT()")

    def test_nor_after_a_reset_that_nothing_follows(self, make_alias):
        """Where Django has nothing to set up."""
        pool = {"release": "transaction", "pool_size": 1, "max_overflow": 0, "reset": "always"}
        wrapper = make_alias(pool=pool, options={"isolation_level": None})
        insert(wrapper, "a")
        with pytest.raises(PreviousStatementLost):
            fetch(wrapper, "SELECT ROW_COUNT()")

    def test_nor_after_what_a_receiver_of_connection_created_has_asked(self, wrapper):
        def ask(connection, **_):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

        connection_created.connect(ask)
        try:
            insert(wrapper, "a")
            with pytest.raises(PreviousStatementLost):
                fetch(wrapper, "SELECT ROW_COUNT()")
        finally:
            connection_created.disconnect(ask)

    def test_eight_threads_over_two_connections(self, make_alias):
        alias = make_alias(pool={"release": "transaction", "pool_size": 2, "max_overflow": 0}, at_most=2).alias
        start = threading.Barrier(8, timeout=60)

        def work(number: int) -> tuple[int, int, int]:
            wrapper, right, lost, wrong = connections[alias], 0, 0, 0
            start.wait()
            for _ in range(100):
                inserted = insert(wrapper, f"n{number}")
                try:
                    told = fetch(wrapper, "SELECT LAST_INSERT_ID()")[0][0]
                    right += told == inserted
                    wrong += told != inserted
                except PreviousStatementLost:
                    lost += 1
            wrapper.close()
            return right, lost, wrong

        with ThreadPoolExecutor(8) as executor:
            right, lost, wrong = map(sum, zip(*executor.map(work, range(8)), strict=True))
        assert wrong == 0
        assert right + lost == 800


class TestHolding:
    def test_the_connection_stays_from_its_first_statement(self, wrapper):
        with hold_connection(wrapper.alias):
            assert out(wrapper) == 0
            first = backend_pid(wrapper)
            with hold_connection(wrapper.alias):
                assert out(wrapper) == 1
            assert (out(wrapper), backend_pid(wrapper), wrapper.connection.thread_id()) == (1, first, first)
        assert out(wrapper) == 0
        assert not pins(wrapper)

    def test_an_error_ends_it(self, wrapper):
        with pytest.raises(LookupError), hold_connection(wrapper.alias):
            backend_pid(wrapper)
            raise LookupError
        assert (out(wrapper), wrapper.release.holds) == (0, 0)

    def test_a_transaction_in_it(self, wrapper, accounts):
        with hold_connection(wrapper.alias):
            with transaction.atomic(using=wrapper.alias):
                accounts.create(name="a")
            assert out(wrapper) == 1
        assert out(wrapper) == 0

    @pytest.mark.parametrize("entry", [{"pool": False}, {"pool": {"release": "request"}}], ids=["unpooled", "request"])
    def test_elsewhere_it_does_nothing(self, make_alias, entry):
        wrapper = make_alias(**entry)
        with hold_connection(wrapper.alias):
            first = backend_pid(wrapper)
        assert backend_pid(wrapper) == first
        wrapper.close()

    def test_djangos_own_engine(self, make_alias):
        wrapper = make_alias(ENGINE="django.db.backends.mysql")
        with hold_connection(wrapper.alias):
            assert backend_pid(wrapper)
        wrapper.close()


class TestCost:
    @pytest.fixture
    def relay(self, server):
        with Relay(server.host, server.port) as relay:
            yield relay

    def test_three_queries_are_three_round_trips(self, make_alias, relay):
        alias = make_alias(pool={"release": "transaction"}, PORT=relay.port).alias

        @auto_close_db
        def request():
            for _ in range(3):
                Account.objects.using(alias).filter(name="nobody").first()

        request()
        assert relay.count(request) == 3

    def test_a_transaction_costs_what_it_costs_on_a_persistent_connection(self, make_alias, relay):
        alias = make_alias(pool={"release": "transaction"}, PORT=relay.port).alias
        stock = make_alias(ENGINE="django.db.backends.mysql", CONN_MAX_AGE=None, PORT=relay.port).alias

        def transfer(alias):
            with transaction.atomic(using=alias):
                Account.objects.using(alias).filter(name="nobody").update(balance=1)
                Account.objects.using(alias).filter(name="nobody").update(balance=2)

        for each in (alias, stock):
            transfer(each)
        assert relay.count(lambda: transfer(alias)) == relay.count(lambda: transfer(stock))
        connections[stock].close()

    def test_a_block_without_a_statement_costs_nothing(self, make_alias, relay):
        alias = make_alias(pool={"release": "transaction"}, PORT=relay.port).alias
        backend_pid(connections[alias])

        def nothing():
            with transaction.atomic(using=alias):
                pass

        assert relay.count(nothing) == 0


class TestExhaustion:
    def test_a_transaction_that_does_not_end_keeps_others_waiting(self, make_alias):
        wrapper = make_alias(pool={"release": "transaction", "pool_size": 1, "max_overflow": 0, "timeout": 0.1})
        held, end = threading.Event(), threading.Event()

        def hold():
            with transaction.atomic(using=wrapper.alias):
                backend_pid(connections[wrapper.alias])
                held.set()
                assert end.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(60)
            with pytest.raises(PoolTimeout, match="The cap is 1: 1 out"):
                backend_pid(wrapper)
            with pytest.raises(PoolTimeout), transaction.atomic(using=wrapper.alias):
                backend_pid(wrapper)
            assert not wrapper.in_atomic_block
        finally:
            end.set()
            thread.join()
        assert backend_pid(wrapper)


class TestTheLine:
    """A thread that is at work takes what one that sleeps has not taken yet, but not for ever."""

    @pytest.fixture
    def slots(self, wrapper):
        wrapper.check_in()
        return wrapper.pool.source

    @pytest.fixture
    def wait(self, wrapper, slots):
        """Starts a thread that waits for the one connection; ``wait()`` returns when it does."""
        with ThreadPoolExecutor(2) as executor:

            def ask():
                other = connections[wrapper.alias]
                try:
                    return backend_pid(other)
                finally:
                    other.close()

            def begin():
                waiting = slots.waiting()
                future = executor.submit(ask)
                eventually(slots.waiting, lambda number: number == waiting + 1)
                return future

            yield begin

    def test_who_has_just_come_may_overtake(self, slots, wait):
        slots.queue.fairness_window = 3600
        mine = slots.acquire_idle()
        future = wait()
        with slots.lock:
            slots.release(mine)
            assert slots.acquire_idle() is mine, "the other thread has been woken, and could not take it yet"
        slots.release(mine)
        assert future.result(timeout=60)

    def test_an_empty_slot_is_worth_waking_for(self, slots, wait):
        slots.queue.fairness_window = 3600
        mine = slots.acquire_idle()
        future = wait()
        with slots.lock:
            slots.release(mine, keep=False)
            assert slots.queue._waiters[0].is_woken
        assert future.result(timeout=60)

    @pytest.mark.parametrize("overtaking", [0, 60])
    def test_who_has_waited_for_too_long_may_not_be_overtaken(self, slots, wait, overtaking):
        slots.queue.fairness_window = overtaking
        mine = slots.acquire_idle()
        future = wait()
        with slots.lock:
            slots.queue._waiters[0].enqueued_at -= 60
            slots.release(mine)
            assert slots.acquire_idle() is None
        assert future.result(timeout=60)

    def test_who_gives_up_wakes_the_next(self, slots, wait):
        slots.queue.fairness_window = 3600
        mine = slots.acquire_idle()
        first, second = wait(), wait()
        with slots.lock:
            slots.release(mine)
            waiter, other = slots.queue._waiters
            assert (waiter.is_woken, other.is_woken) == (True, False)
            slots.queue._dequeue(waiter)
            assert other.is_woken
            waiter.error = LookupError("given up")
        assert second.result(timeout=60)
        with pytest.raises(LookupError):
            first.result(timeout=60)

    def test_what_comes_back_while_a_thread_joins_the_line_is_seen(self, slots, monkeypatch):
        """It comes back without the lock, to a line where nobody stands yet: the thread must not go to sleep beside it."""
        mine = slots.acquire_idle()
        join = slots.queue._enqueue

        def join_late(is_first):
            slots.release(mine)
            return join(is_first)

        monkeypatch.setattr(slots.queue, "_enqueue", join_late)
        monkeypatch.setattr(Waiter, "sleep", lambda *_: pytest.fail("it sleeps"))
        assert slots.acquire(SlotRequest()) is mine
        slots.release(mine)

    def test_threads_of_many_statements_over_two_connections(self, make_alias):
        alias = make_alias(pool={"release": "transaction", "pool_size": 2, "max_overflow": 0}, at_most=2).alias

        def work(_):
            wrapper = connections[alias]
            pids = {backend_pid(wrapper) for _ in range(100)}
            wrapper.close()
            return pids

        with ThreadPoolExecutor(16) as executor:
            pids = set().union(*executor.map(work, range(16)))
        status = status_of(connections[alias])
        assert len(pids) == 2
        assert (status["out"], status["idle"], status["waiting"]) == (0, 2, 0)
