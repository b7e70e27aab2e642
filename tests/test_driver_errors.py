"""Every way in which the driver can raise is heard by the pool, once: one death is one error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from typing import Any

import MySQLdb
import pytest
from django.db import Error, OperationalError, ProgrammingError, connections, transaction

from devtools.server import PrivateServer
from django_mysqlpool import PoolTimeout, PreviousStatementLost, hold_connection
from django_mysqlpool.mysqlpool.backend import wrapper as wrapper_module
from django_mysqlpool.mysqlpool.pool.faults import Fault, fault_of
from tests import DRIVER
from tests.helpers import (
    DATABASE,
    RELEASE,
    SEVERAL_STATEMENTS,
    backend_pid,
    eventually,
    hold_at_once,
    holds,
    look,
    mysqlclient_only,
    status_of,
)

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]

heard: list[Any] = []


def listen(error: Exception, alias: str) -> None:
    assert isinstance(error, MySQLdb.Error), "the driver's own, whatever Django makes of it"
    heard.append(error.args[0])


@pytest.fixture(autouse=True)
def _nothing_heard(monkeypatch):
    heard.clear()
    # However slow the machine: what is held is not looked at before a statement, as if the last one had just ended.
    monkeypatch.setattr(wrapper_module, "RECHECK_AFTER", float("inf"))


@pytest.fixture
def wrapper(make_alias) -> Any:
    return make_alias(
        pool={"pool_size": 3, "discard_on_error": f"{__name__}.listen"},
        options={"connect_timeout": 10, **SEVERAL_STATEMENTS},
    )


@pytest.fixture
def unbuffered(make_alias) -> Any:
    """An alias whose cursors read their rows as they are fetched."""
    cursor_class = import_module(f"{MySQLdb.__name__}.cursors").SSCursor
    return make_alias(
        pool={"pool_size": 3, "discard_on_error": f"{__name__}.listen"},
        options={"cursorclass": cursor_class, **SEVERAL_STATEMENTS},
    )


def numbers(up_to: int) -> str:
    """A table of them."""
    one_by_one = f"SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < {up_to}"
    return f"(WITH RECURSIVE t AS ({one_by_one}) SELECT n FROM t)"


# Its last rows are an error (1690), which the server finds when it comes to them.
ENDS_BADLY = f"SELECT EXP(8 * n), REPEAT('x', 2000) FROM {numbers(100)} AS numbers"
OUT_OF_RANGE = 1690
LONG = f"SELECT REPEAT('x', 1000) FROM {numbers(900)} AS a, {numbers(90)} AS b"


def execute(cursor: Any) -> None:
    cursor.execute("SELECT * FROM nowhere")


def executemany(cursor: Any) -> None:
    cursor.executemany("INSERT INTO nowhere VALUES (%s)", [(1,), (2,)])


def executemany_in_a_loop(cursor: Any) -> None:
    cursor.executemany("UPDATE nowhere SET n = %s", [(1,), (2,)])


def executemany_in_batches(cursor: Any) -> None:
    raw(cursor).executemany_fallback = "multi"  # mysqlclient, since 2.3.2
    cursor.executemany("UPDATE nowhere SET n = %s", [(1,), (2,)])


def callproc(cursor: Any) -> None:
    cursor.callproc("no_procedure", (1,))


def nextset(cursor: Any) -> None:
    cursor.execute("SELECT 1; SELECT * FROM nowhere")
    cursor.fetchall()
    cursor.nextset()


ACTIONS = [execute, executemany, executemany_in_a_loop, executemany_in_batches, callproc, nextset]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", ["wrapper", "unbuffered"])
def test_an_error_of_the_server_is_heard_once(request, action, kind):
    own = request.getfixturevalue(kind)
    with own.cursor() as cursor, pytest.raises(Error) as caught:
        action(cursor)
    assert heard == [caught.value.args[0]]


def raw(cursor: Any) -> Any:
    """The driver's own, in Django's wrappers."""
    return raw(cursor.cursor) if "cursor" in vars(cursor) else cursor


def fetchone(cursor: Any) -> None:
    while cursor.fetchone():
        pass


def fetchmany(cursor: Any) -> None:
    while cursor.fetchmany(7):
        pass


def fetchall(cursor: Any) -> None:
    cursor.fetchall()


def iterate(cursor: Any) -> None:
    for _ in cursor:
        pass


def iterate_raw(cursor: Any) -> None:
    for _ in raw(cursor):
        pass


def close(cursor: Any) -> None:
    raw(cursor).close()


def next_statement(cursor: Any) -> None:
    cursor.execute("SELECT 1")


READS = [fetchone, fetchmany, fetchall, iterate, iterate_raw]


@pytest.mark.parametrize("read", READS)
def test_an_error_among_rows_that_are_fetched_later_is_heard_once(unbuffered, read):
    with unbuffered.cursor() as cursor:
        cursor.execute(ENDS_BADLY)
        cursor.fetchone()
        assert heard == []
        with pytest.raises((Error, MySQLdb.Error)) as caught:
            read(cursor)
        assert caught.value.args[0] == OUT_OF_RANGE
    assert heard == [OUT_OF_RANGE]


@holds
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("read", [*READS, close, nextset, next_statement])
def test_a_death_among_rows_costs_one_error(unbuffered, observer, read):
    pid = unbuffered.connection.thread_id() if unbuffered.connection else backend_pid(unbuffered)
    cursor = unbuffered.cursor()
    cursor.execute(LONG)
    cursor.fetchone()
    kill(observer, pid)
    with suppress(Error, MySQLdb.Error):  # some drivers close without a word
        read(cursor)
    with suppress(Error, MySQLdb.Error):
        cursor.close()
    assert backend_pid(unbuffered) != pid
    assert len(heard) <= 1


@pytest.mark.parametrize("read", [fetchone, fetchmany, fetchall, iterate, iterate_raw])
def test_rows_of_a_connection_that_has_gone_back_are_nobodys(unbuffered, read):
    cursor = unbuffered.cursor()
    cursor.execute(LONG)
    cursor.fetchone()
    unbuffered.check_in()
    for alias in (unbuffered.alias,) * 2:
        hold_at_once(alias, 3)
    with pytest.raises((ProgrammingError, MySQLdb.ProgrammingError), match="(?i)cursor closed"):
        read(cursor)
    assert heard == []


def test_fetching_is_under_the_wrappers_lock(unbuffered):
    """Whatever is sent or read is so while nobody else may take the connection."""
    with unbuffered.cursor() as cursor:
        cursor.execute(LONG)
        own = raw(cursor)
        lock, held = unbuffered.use, []
        result = own._result

        def look() -> None:
            is_free = lock.acquire(blocking=False)
            held.append(not is_free)
            if is_free:
                lock.release()

        class Spy:
            def __getattr__(self, name: str) -> Any:
                thread = threading.Thread(target=look)
                thread.start()
                thread.join()
                return getattr(result, name)

        own._result = Spy()
        own.fetchone()
        own.fetchmany(3)
        own._result = result
        assert held
        assert all(held)


def test_the_fetches_of_a_buffered_cursor_are_the_drivers(wrapper):
    with wrapper.cursor() as cursor:
        for name in ("fetchone", "fetchmany", "fetchall"):
            assert getattr(type(raw(cursor)), name).__module__.startswith(MySQLdb.__name__)


def kill(observer: Any, pid: int) -> None:
    observer.query(f"KILL {pid}")
    rows = f"SELECT id FROM information_schema.processlist WHERE id = {pid}"
    eventually(lambda: observer.query(rows), lambda left: not left)


def commit(own: Any) -> None:
    own.commit()


def rollback(own: Any) -> None:
    own.rollback()


def set_autocommit(own: Any) -> None:
    own.set_autocommit(True)


@pytest.mark.parametrize("action", [commit, rollback, set_autocommit])
def test_an_end_of_a_transaction_that_finds_the_server_gone(wrapper, observer, action):
    hold_at_once(wrapper.alias, 3)
    wrapper.set_autocommit(False)
    pid = backend_pid(wrapper)
    kill(observer, pid)
    with pytest.raises(Error):
        action(wrapper)
    assert len(heard) == 1
    wrapper.close()
    assert look(wrapper.alias) != pid


@holds
def test_is_usable_tells_the_pool(wrapper, observer):
    hold_at_once(wrapper.alias, 3)
    pid = backend_pid(wrapper)
    lease = wrapper.lease
    kill(observer, pid)
    assert not wrapper.is_usable()
    assert lease.is_broken
    assert all(session.needs_ping for session in wrapper.pool.sessions if session is not lease.session)
    assert backend_pid(wrapper) != pid


class Interrupt(Exception):
    """An application's own, as Celery's soft time limit is."""


class HardInterrupt(BaseException):
    """One that ``except Exception`` lets pass."""


@contextmanager
def interrupted(error: type[BaseException], seconds: float = 0.2) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [Interrupt, HardInterrupt])
def test_a_statement_in_whose_middle_somebody_else_raises_loses_its_connection(wrapper, error):
    with hold_connection(wrapper.alias):
        pid = backend_pid(wrapper)
        with pytest.raises(error), wrapper.cursor() as cursor, interrupted(error):
            cursor.execute("SELECT SLEEP(1), 'of the one who was interrupted'")
        assert backend_pid(wrapper) != pid
    wrapper.close()
    for _ in range(3):
        with closing(connections[wrapper.alias]) as own, own.cursor() as cursor:
            cursor.execute("SELECT 42")
            assert cursor.fetchall() == ((42,),)
    assert not heard  # nor does mysqlclient before 2.3 ask for further results when its cursor is closed


class Unwritable:
    """An argument that no driver can write into a statement."""

    def __str__(self) -> str:
        raise Interrupt

    def translate(self, _: Any) -> str:
        raise Interrupt


@pytest.mark.parametrize("argument", [Unwritable(), "\ud800"])
def test_an_argument_that_cannot_be_written_costs_no_connection(wrapper, argument):
    with hold_connection(wrapper.alias):
        pid = backend_pid(wrapper)
        with pytest.raises(Exception, match=r".*") as caught, wrapper.cursor() as cursor:
            cursor.execute("SELECT %s", [argument])
        if DRIVER == "pymysql" and isinstance(caught.value, UnicodeEncodeError):
            return  # it is found when the statement is being sent
        assert backend_pid(wrapper) == pid


# What ends a connection, and what does not.


def signal_of(number: int, words: str = "of a test") -> str:
    return f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{words}'"


@pytest.mark.parametrize("number", [1205, 1213, 1317, 1062, 1146, 1226, 1290, 1969, 3024, 1105])
def test_what_is_an_error_and_no_more_costs_no_connection(make_alias, number):
    alias = make_alias(pool={"pool_size": 1, "max_overflow": 0}).alias
    with closing(connections[alias]) as own, hold_connection(alias):
        pid = backend_pid(own)
        with pytest.raises(Error) as caught, own.cursor() as cursor:
            cursor.execute(signal_of(number))
        assert caught.value.args[0] == number
        assert backend_pid(own) == pid


@pytest.mark.parametrize("number", [1053, 1153, 1158, 1160, 1927, 3032, 3169])
def test_with_what_a_server_says_goodbye(make_alias, number):
    """By its number: the server has not hung up yet when it is read."""
    alias = make_alias(pool={"pool_size": 1, "max_overflow": 0}).alias
    with closing(connections[alias]) as own, hold_connection(alias):
        pid = backend_pid(own)
        with pytest.raises(Error), own.cursor() as cursor:
            cursor.execute(signal_of(number))
        assert backend_pid(own) != pid


def test_numbers_that_mean_another_thing_to_the_other_server():
    for number in (4031, 4081, 4082):
        error = MySQLdb.OperationalError(number, "of MySQL the connection's end, of MariaDB a mistake in a statement")
        assert fault_of(error) is Fault.LOST
        assert fault_of(error, is_mariadb=True) is Fault.NONE


def test_a_server_that_hangs_up_after_an_error_nobody_knows(make_alias, observer):
    """Whatever its number: that the server has gone can be seen."""
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0})
    hold_at_once(wrapper.alias, 2)
    with hold_connection(wrapper.alias):
        pid = backend_pid(wrapper)
        lease = wrapper.lease
        kill(observer, pid)
        eventually(lease.session.socket.has_pending_data, bool)
        # As if this had been the server's last word.
        lease.note_error(MySQLdb.OperationalError(1999, "an error of a later version"))
        assert lease.is_broken
        assert backend_pid(wrapper) != pid


@holds
def test_a_packet_that_is_too_large_costs_one_error(make_alias, observer):
    ((before,),) = observer.query("SELECT @@GLOBAL.max_allowed_packet")
    observer.query("SET GLOBAL max_allowed_packet = 1048576")
    try:
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        for number in range(10):
            with pytest.raises(OperationalError), wrapper.cursor() as cursor:
                cursor.execute("SELECT LENGTH(%s)", ["x" * (1048576 + 4096 * number)])
            assert backend_pid(wrapper)
            wrapper.close()
    finally:
        observer.query("SET GLOBAL max_allowed_packet = %s", before)


def test_a_server_that_goes_offline(observer, make_alias, server):
    """MySQL's offline mode ends the connections of all but its administrators."""
    if server.is_mariadb:
        pytest.skip("MariaDB has none")
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
    user = wrapper.settings_dict["USER"]
    observer.query(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{user}'@'%%'")
    observer.query(f"GRANT SELECT ON {DATABASE}.* TO '{user}'@'%%'")
    with hold_connection(wrapper.alias):
        assert backend_pid(wrapper)
        observer.query("SET GLOBAL offline_mode = ON")
        try:
            with pytest.raises(Error):
                backend_pid(wrapper)
        finally:
            observer.query("SET GLOBAL offline_mode = OFF")
        assert backend_pid(wrapper)


# Limits of an account


class TestHourlyLimits:
    """Error 1226 as for too many at once, and nothing to wait for."""

    @pytest.fixture
    def limited(self, make_alias, observer) -> Callable[..., Any]:
        def make(limit: str, **pool: Any) -> Any:
            wrapper = make_alias(pool={"pool_size": 3, "timeout": 30, **pool})
            user = wrapper.settings_dict["USER"]
            observer.query(f"ALTER USER '{user}'@'%%' WITH {limit}")
            observer.query(f"GRANT USAGE ON *.* TO '{user}'@'%%'")
            return wrapper

        return make

    @pytest.mark.parametrize("language", ["en_US", "de_DE", "fr_FR", "ja_JP"])
    def test_of_connections_is_told_at_once_and_what_is_open_stays(self, limited, observer, language):
        with suppress(MySQLdb.Error):
            observer.query(f"SET GLOBAL lc_messages = '{language}'")
        try:
            wrapper = limited("MAX_CONNECTIONS_PER_HOUR 2")
            look(wrapper.alias)  # (A server may count only one of an account's first two, if they come together.)
            hold_at_once(wrapper.alias, 2)
            ids = observer.connections_of(wrapper.settings_dict["USER"])
            barrier = threading.Barrier(3, timeout=60)
            errors: list[Exception] = []

            def hold() -> None:
                with closing(connections[wrapper.alias]) as own:
                    try:
                        own.ensure_connection()
                    except OperationalError as error:
                        errors.append(error)
                    barrier.wait()

            threads = [threading.Thread(target=hold) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [(type(error), error.args[0]) for error in errors] == [(OperationalError, 1226)]
            assert not wrapper.pool.pressure.is_high
            for _ in range(5):
                assert look(wrapper.alias) in ids
            assert observer.connections_of(wrapper.settings_dict["USER"]) == ids
        finally:
            observer.query("SET GLOBAL lc_messages = 'en_US'")

    def test_of_queries_is_the_statements_error(self, limited, observer):
        wrapper = limited("MAX_QUERIES_PER_HOUR 20")
        hold_at_once(wrapper.alias, 1)
        with hold_connection(wrapper.alias):
            with pytest.raises(OperationalError) as caught:
                for _ in range(30):
                    backend_pid(wrapper)
            wrapper.close()
        assert caught.value.args[0] == 1226
        assert status_of(wrapper)["open"] == 1
        assert not wrapper.pool.pressure.is_high


@pytest.mark.parametrize(
    ("resource", "fault"),
    [
        ("max_user_connections", Fault.FULL),
        ("max_connections_per_hour", Fault.NONE),
        ("max_questions", Fault.NONE),
        ("max_updates", Fault.NONE),
    ],
)
def test_which_limit_it_is_stands_in_the_message(resource, fault):
    for words in (
        "User 'shop' has exceeded the '%s' resource (current value: 1)",
        "Benutzer »shop« hat die Grenze %s erreicht",
    ):
        assert fault_of(MySQLdb.OperationalError(1226, words % resource)) is fault


@pytest.mark.parametrize(
    "alter",
    [
        "ALTER USER {} IDENTIFIED BY 'another'",
        "ALTER USER {} ACCOUNT LOCK",
        "ALTER USER {} REQUIRE SUBJECT '/CN=nobody'",
        "DROP USER {}",
    ],
)
def test_a_refusal_for_good_is_told_at_once_to_all(make_alias, observer, alter):
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 60})
    user = f"'{wrapper.settings_dict['USER']}'@'%%'"
    observer.query(alter.format(user))
    errors: list[Exception] = []

    def fail() -> None:
        try:
            look(wrapper.alias)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    observer.query(f"CREATE USER IF NOT EXISTS {user}")
    assert len(errors) == 8
    assert not any(isinstance(error, PoolTimeout) for error in errors)
    assert status_of(wrapper)["open"] == 0


@pytest.mark.skipif(RELEASE != "transaction", reason="about release = 'transaction'")
def test_a_previous_statement_that_cannot_be_asked_about_tells_why(make_alias, monkeypatch):
    """As where a proxy that shares connections refuses the question (MySQL Router's 3566)."""
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
    with transaction.atomic(wrapper.alias), wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO shop_account (name, balance) VALUES ('Ada', 0)")
        session = wrapper.lease.session
        session.history.last_id_of = None
        monkeypatch.setattr(session.driver, "ask", lambda connection, *_: connection.query(signal_of(3566, "rejected")))
        with pytest.raises(PreviousStatementLost) as caught:
            cursor.execute("SELECT LAST_INSERT_ID()")
        assert isinstance(caught.value.__cause__, MySQLdb.Error)
        assert caught.value.__cause__.args[0] == 3566
        transaction.set_rollback(True, wrapper.alias)


@mysqlclient_only("its procedures' rows come so")
def test_a_procedures_later_result(wrapper, observer):
    observer.query(f"DROP PROCEDURE IF EXISTS {DATABASE}.fails_later")
    observer.query(
        f"CREATE PROCEDURE {DATABASE}.fails_later() BEGIN SELECT 1; SELECT 2; "
        "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1644, MESSAGE_TEXT = 'later'; END"
    )
    with wrapper.cursor() as cursor:
        cursor.callproc("fails_later")
        assert cursor.nextset()
        assert heard == []
        with pytest.raises((Error, MySQLdb.Error)):
            cursor.nextset()
    assert heard == [1644]


def test_a_private_server_that_is_shut_down_says_goodbye_once(make_alias):
    with PrivateServer() as server, closing(server.connect()) as connection:
        connection.query(f"CREATE DATABASE {DATABASE}")
        entry = {"HOST": server.host, "PORT": server.port, "USER": server.user, "PASSWORD": server.password}
        wrapper = make_alias(pool={"pool_size": 1, "discard_on_error": f"{__name__}.listen"}, **entry)
        backend_pid(wrapper)
    with suppress(Error):
        backend_pid(wrapper)
    assert len(heard) <= 1
