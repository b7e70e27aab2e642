"""What a user sees when the server, or the network, goes away: an error where the truth demands one, and no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import MySQLdb
import pytest
from django.db import DatabaseError, Error, InterfaceError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from devtools.server import PrivateServer, Server, server_from_environment
from django_mysqlpool import PoolTimeout, hold_connection
from django_mysqlpool.mysqlpool.backend import wrapper as wrapper_module
from django_mysqlpool.mysqlpool.pool import connector, liveness, writes
from django_mysqlpool.mysqlpool.pool.faults import Fault, fault_of
from django_mysqlpool.mysqlpool.pool.slot_pool import SlotPool
from tests import DRIVER
from tests.helpers import DATABASE, Observer, backend_pid, eventually, hold_at_once, holds, look, status_of
from tests.relay import Relay

pytestmark = [pytest.mark.driver, pytest.mark.server, pytest.mark.mode]

STOCK = "django.db.backends.mysql"
POOLED = "django_mysqlpool.backends.mysqlpool"
# What the driver, or the server with its last breath, says of a connection that is dead; and that there is no server.
# (0 is PyMySQL's word for a connection that it has closed.)
LOST = {0, 1053, 1077, 1927, 2006, 2013, 4031}
NO_SERVER = {2002, 2003, 2013}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for this module alone, which it may stop."""
    # A crash must not cost it the users that the trials have made.
    with server_from_environment(options=["--innodb-flush-log-at-trx-commit=1"]) as server:
        with closing(server.connect()) as connection:
            connection.query(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
            connection.query(
                f"CREATE TABLE IF NOT EXISTS {DATABASE}.shop_account "
                "(id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, balance INT NOT NULL)"
            )
        yield server


@pytest.fixture
def stoppable(server) -> PrivateServer:
    if not isinstance(server, PrivateServer):
        pytest.skip("MYSQLPOOL_SERVER_URL names a server that is not ours to stop")
    return server


class SteadyObserver(Observer):
    """Outlives its server."""

    def query(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        try:
            return super().query(sql, *args)
        except MySQLdb.OperationalError as error:
            if error.args[0] not in LOST:
                raise
            self._connection = self._server.connect()
            return super().query(sql, *args)

    def kill(self, *pids: int, query: bool = False) -> None:
        """KILL connections, or their queries; returns when the connections are gone."""
        for pid in pids:
            self.query(f"KILL {'QUERY ' if query else ''}{pid}")
        if not query:
            wanted = ", ".join(map(str, pids))
            rows = f"SELECT id FROM information_schema.processlist WHERE id IN ({wanted})"
            eventually(lambda: self.query(rows), lambda left: not left)

    def wait_for(self, statement: str) -> int:
        """Wait until a statement that begins so runs; the id of its connection."""
        found: list[tuple[Any, ...]] = []
        like = "SELECT id FROM information_schema.processlist WHERE info LIKE %s"
        eventually(lambda: found.extend(self.query(like, f"{statement}%")) or found, bool)
        return int(found[0][0])

    def count(self, name: str) -> int:
        """A counter of the server's."""
        return int(self.query("SHOW GLOBAL STATUS LIKE %s", name)[0][1])


@pytest.fixture
def observer(server) -> Iterator[SteadyObserver]:
    observer = SteadyObserver(server)
    yield observer
    observer.close()


@pytest.fixture
def relay(server) -> Iterator[Relay]:
    with Relay(server.host, server.port) as relay:
        yield relay


@pytest.fixture
def account(observer) -> Iterator[Account]:
    observer.query(f"DELETE FROM {DATABASE}.shop_account")
    observer.query(f"INSERT INTO {DATABASE}.shop_account (name, balance) VALUES ('Ada', 0)")
    return Account(observer)


class Account:
    """A row, as seen from outside."""

    deposit = "UPDATE shop_account SET balance = balance + 1"

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    @property
    def balance(self) -> int:
        return int(self._observer.query(f"SELECT balance FROM {DATABASE}.shop_account")[0][0])


def execute(wrapper: Any, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    with wrapper.cursor() as cursor:
        cursor.execute(statement, args)
        return list(cursor.fetchall()) if cursor.description else []


def error_of(action: Callable[..., object], *args: Any) -> Error:
    """The database error that it ends with."""
    with pytest.raises(Error) as caught:
        action(*args)
    return caught.value


def number_of(error: Exception | None) -> int:
    assert isinstance(error, OperationalError if DRIVER == "mysqlclient" else (OperationalError, InterfaceError)), error
    return int(error.args[0])


class InThread(threading.Thread):
    """Runs an action in a thread that returns what it took; keeps what came of it."""

    def __init__(self, action: Callable[..., Any], *args: Any) -> None:
        super().__init__(name="borrower")
        self._action, self._args = action, args
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._action(*self._args)
        except Exception as error:
            self.error = error
        finally:
            connections.close_all()


def all_at_once(number: int, action: Callable[[], Any]) -> list[Any]:
    """The results, or the errors, of as many threads that begin together."""
    barrier = threading.Barrier(number)

    def one() -> Any:
        barrier.wait()
        return action()

    threads = [InThread(one) for _ in range(number)]
    for thread in threads:
        thread.join()
    return [thread.error or thread.result for thread in threads]


@pytest.fixture
def never_looked_at_again(monkeypatch):
    """However slow the machine: what is held is not looked at before a statement, as if the last one had just ended."""
    monkeypatch.setattr(wrapper_module, "RECHECK_AFTER", float("inf"))


@pytest.fixture
def held_for_long(monkeypatch):
    """As if a long time went by between any two statements."""
    monkeypatch.setattr(wrapper_module, "RECHECK_AFTER", -1)


class TestAKilledConnection:
    def test_is_not_lent(self, make_alias, observer):
        alias = make_alias(pool={"pool_size": 5}).alias
        hold_at_once(alias, 5)
        dead = observer.connections_of(connections[alias].settings_dict["USER"])
        observer.kill(*dead)
        barrier = threading.Barrier(5)

        def request() -> int:
            pid = look_and_wait(alias, barrier)
            assert pid not in dead
            return pid

        assert len(set(all_at_once(5, request))) == 5

    @holds
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_its_statement_fails_and_the_next_one_of_the_same_request_succeeds(self, make_alias, observer, account):
        wrapper = make_alias()
        pid = backend_pid(wrapper)
        observer.kill(pid)
        assert number_of(error_of(execute, wrapper, account.deposit)) in LOST
        assert account.balance == 0
        execute(wrapper, account.deposit)
        assert account.balance == 1
        assert backend_pid(wrapper) != pid

    def test_in_the_middle_of_a_statement(self, make_alias, observer, account):
        wrapper = make_alias()
        slow = "UPDATE shop_account SET balance = balance + 1 WHERE SLEEP(60) = 0"
        thread = InThread(execute_and_go_on, wrapper.alias, slow)
        observer.kill(observer.wait_for("UPDATE shop_account"))
        thread.join()
        assert number_of(thread.error) in LOST
        assert thread.error.went_on
        assert account.balance == 0

    @pytest.mark.parametrize("engine", [POOLED, STOCK])
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_inside_atomic_the_block_fails_as_with_djangos_own_engine(self, make_alias, observer, account, engine):
        wrapper = make_alias(ENGINE=engine)
        pid = backend_pid(wrapper)
        with pytest.raises(Error) as caught, transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            observer.kill(backend_pid(wrapper))
            assert number_of(error_of(execute, wrapper, account.deposit)) in LOST
            execute(wrapper, account.deposit)
        assert number_of(caught.value) in LOST
        assert account.balance == 0
        with transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
        assert account.balance == 1
        assert backend_pid(wrapper) != pid

    @pytest.mark.parametrize("engine", [POOLED, STOCK])
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_inside_a_savepoint(self, make_alias, observer, account, engine):
        wrapper = make_alias(ENGINE=engine)
        refusals = []
        with pytest.raises(DatabaseError), transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            with suppress(OperationalError), transaction.atomic(wrapper.alias):
                observer.kill(backend_pid(wrapper))
                execute(wrapper, account.deposit)
            refusals.append(error_of(execute, wrapper, account.deposit))
            raise refusals[0]
        assert isinstance(refusals[0], (TransactionManagementError, OperationalError))
        assert account.balance == 0
        with transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
        assert account.balance == 1

    @pytest.mark.parametrize("engine", [POOLED, STOCK])
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_before_the_commit(self, make_alias, observer, account, engine):
        wrapper = make_alias(ENGINE=engine)
        with pytest.raises(Error) as caught, transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            observer.kill(backend_pid(wrapper))
        assert number_of(caught.value) in LOST
        assert account.balance == 0
        assert not wrapper.in_atomic_block
        execute(wrapper, account.deposit)
        assert account.balance == 1

    @pytest.mark.parametrize("engine", [POOLED, STOCK])
    @pytest.mark.usefixtures("held_for_long")
    def test_without_autocommit_nothing_goes_on_elsewhere(self, make_alias, observer, account, engine):
        """The beginning of the transaction is lost, and whoever began it is told, again and again until it is over."""
        wrapper = make_alias(ENGINE=engine)
        wrapper.set_autocommit(False)
        execute(wrapper, account.deposit)
        observer.kill(backend_pid(wrapper))
        for _ in range(3):
            assert number_of(error_of(execute, wrapper, account.deposit)) in LOST
        assert number_of(error_of(wrapper.commit)) in LOST
        assert account.balance == 0
        wrapper.close()
        assert look(wrapper.alias)
        assert account.balance == 0

    @pytest.mark.parametrize("dirt", ["SELECT GET_LOCK('job', 0)", "SET @mine = 1", "LOCK TABLES shop_account WRITE"])
    @pytest.mark.usefixtures("held_for_long")
    def test_a_session_with_something_of_its_borrowers_tells_of_its_death(self, make_alias, observer, dirt):
        wrapper = make_alias(pool={"ping_after": 0})
        pid = backend_pid(wrapper)
        execute(wrapper, dirt)
        observer.kill(pid)
        assert number_of(error_of(backend_pid, wrapper)) in LOST
        assert backend_pid(wrapper) != pid

    def test_a_killed_query_costs_no_connection(self, make_alias, observer, account):
        wrapper = make_alias()
        with transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            blocked = InThread(execute_and_go_on, wrapper.alias, "UPDATE shop_account SET balance = 7")
            pid = observer.wait_for("UPDATE shop_account SET balance = 7")
            observer.kill(pid, query=True)
            blocked.join()
        assert number_of(blocked.error) == 1317
        assert blocked.error.went_on == pid
        assert account.balance == 1


def look_and_wait(alias: str, barrier: threading.Barrier) -> int:
    with closing(connections[alias]) as own, hold_connection(alias):
        pid = backend_pid(own)
        barrier.wait()
        return pid


def execute_and_go_on(alias: str, statement: str) -> None:
    """Execute a statement that fails, and another in the same request; the error tells the latter's connection."""
    wrapper = connections[alias]
    try:
        execute(wrapper, statement)
    except OperationalError as error:
        error.went_on = backend_pid(wrapper)
        raise


class TestAnAnswerThatIsLost:
    def test_the_statement_is_not_sent_again(self, make_alias, server, observer, relay, account):
        """The server has done it; the driver can't know."""
        wrapper = make_alias(PORT=relay.port)
        with closing(server.connect(database=DATABASE)) as blocking:
            blocking.autocommit(False)
            blocking.cursor().execute("SELECT * FROM shop_account FOR UPDATE")
            thread = InThread(execute_and_go_on, wrapper.alias, account.deposit)
            observer.wait_for(account.deposit)
            relay.stall()
            blocking.rollback()
        eventually(lambda: account.balance, lambda balance: balance == 1)
        relay.reset()
        thread.join()
        assert number_of(thread.error) in LOST
        assert thread.error.went_on
        assert account.balance == 1


class TestWaitTimeout:
    """``recycle`` is off: by default it ends a connection's life before the server does."""

    @pytest.fixture
    def short_lived(self, make_alias, observer):
        wrapper = make_alias(pool={"recycle": -1}, options={"init_command": "SET wait_timeout = 1"})
        wrapper.ended = lambda: eventually(
            lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda pids: not pids
        )
        return wrapper

    def test_an_idle_one_is_not_lent(self, short_lived):
        short_lived.ensure_connection()
        short_lived.close()
        short_lived.ended()
        assert look(short_lived.alias)

    @pytest.mark.usefixtures("held_for_long")
    def test_a_held_one_is_replaced_before_its_next_statement(self, short_lived):
        pid = backend_pid(short_lived)
        short_lived.ended()
        assert backend_pid(short_lived) != pid

    @holds
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_unless_there_was_a_statement_a_moment_ago(self, short_lived, server):
        backend_pid(short_lived)
        short_lived.ended()
        expected = {2006, 2013} if server.is_mariadb else {4031, 2013}
        assert number_of(error_of(backend_pid, short_lived)) in expected
        assert backend_pid(short_lived)

    @pytest.mark.usefixtures("held_for_long")
    def test_in_a_transaction_the_statement_tells(self, short_lived, server, account):
        with pytest.raises(OperationalError) as caught, transaction.atomic(short_lived.alias):
            execute(short_lived, account.deposit)
            short_lived.ended()
            execute(short_lived, account.deposit)
        assert number_of(caught.value) in LOST
        assert account.balance == 0
        assert backend_pid(short_lived)


@pytest.fixture(params=["restart", "kill"])
def come_back(request, stoppable) -> Iterator[Callable[[], None]]:
    """End the server, in order or as a crash does, and have it answer again on the same port."""

    def come_back() -> None:
        {"restart": stoppable.stop, "kill": stoppable.kill}[request.param]()
        stoppable.start()

    yield come_back
    stoppable.start()


class TestAServerThatCameBack:
    def test_the_first_request_succeeds_and_all_that_follow(self, make_alias, come_back):
        alias = make_alias(pool={"pool_size": 5, "max_overflow": 0}).alias
        hold_at_once(alias, 5)
        come_back()
        assert look(alias)
        hold_at_once(alias, 5)
        assert status_of(connections[alias])["open"] == 5

    def test_the_first_death_makes_the_others_suspect(self, make_alias, observer, relay):
        """Each must answer a ping, once, before it is lent again."""
        wrapper = make_alias(pool={"pool_size": 3, "max_overflow": 0}, PORT=relay.port)
        alias = wrapper.alias
        hold_at_once(alias, 3)
        observer.kill(look(alias))  # the one that is lent next
        eventually(lambda: [session.has_hung_up() for session in wrapper.pool.sessions], any)
        assert look(alias)
        pings = relay.count(lambda: hold_at_once(alias, 3))
        assert pings == 2
        assert relay.count(lambda: hold_at_once(alias, 3)) == 0

    @pytest.mark.usefixtures("held_for_long")
    def test_what_is_held_works_on_outside_a_transaction(self, make_alias, come_back):
        wrapper = make_alias()
        backend_pid(wrapper)
        come_back()
        assert backend_pid(wrapper)

    @holds
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_those_who_wait_are_served(self, make_alias, come_back):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 60})
        backend_pid(wrapper)
        waiting = [InThread(look, wrapper.alias) for _ in range(5)]
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 5)
        come_back()
        assert number_of(error_of(backend_pid, wrapper)) in LOST
        wrapper.close()
        for thread in waiting:
            thread.join()
        assert [thread.error for thread in waiting] == [None] * 5

    @pytest.mark.usefixtures("never_looked_at_again")
    def test_in_a_transaction_the_block_fails_and_the_next_one_works(self, make_alias, come_back, account):
        wrapper = make_alias()
        with pytest.raises(OperationalError) as caught, transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            come_back()
            execute(wrapper, account.deposit)
        assert number_of(caught.value) in LOST
        with transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
        assert account.balance == 1


class TestAShutdown:
    def test_a_statement_that_runs_ends_with_the_servers_error(self, make_alias, observer, stoppable, account):
        alias = make_alias().alias
        slow = "UPDATE shop_account SET balance = 7 WHERE SLEEP(600) = 0"
        thread = InThread(lambda: execute(connections[alias], slow))
        observer.wait_for(slow)
        stoppable.stop()
        thread.join()
        assert number_of(thread.error) in LOST
        stoppable.start()
        assert look(alias)
        assert account.balance == 0


FIVE = {"pool_size": 5, "max_overflow": 0, "timeout": 600}


class TestAServerThatIsDown:
    """Each of fifty threads over five connections hears the driver's error; to wait for ``timeout`` would end the run."""

    @pytest.fixture
    def down(self, stoppable) -> Iterator[PrivateServer]:
        yield stoppable
        stoppable.start()

    @pytest.mark.parametrize("idle", [0, 5])
    def test_all_hear_so_and_it_returns_to_no_stampede(self, make_alias, observer, down, idle):
        alias = make_alias(pool=FIVE).alias
        if idle:
            hold_at_once(alias, idle)
        down.kill()
        for error in all_at_once(50, lambda: look(alias)):
            assert number_of(error) in NO_SERVER
            assert not isinstance(error, PoolTimeout)
        down.start()
        before = observer.count("Connections")
        assert {type(result) for result in all_at_once(50, lambda: look(alias))} == {int}
        assert observer.count("Connections") - before <= 5

    def test_those_who_wait_for_it_hear_so_too(self, make_alias, down):
        """Four have a connection, and do not look at it; the fifth place is tried in vain, by all others in turn."""
        alias = make_alias(pool=FIVE).alias
        enough = threading.Event()
        holders = [InThread(hold, alias, enough) for _ in range(4)]
        eventually(lambda: status_of(connections[alias])["out"], lambda out: out == 4)
        down.kill()
        errors = all_at_once(20, lambda: look(alias))
        enough.set()
        for holder in holders:
            holder.join()
        assert {number_of(error) for error in errors} <= NO_SERVER
        assert not any(isinstance(error, PoolTimeout) for error in errors)


def hold(alias: str, enough: threading.Event) -> None:
    connections[alias].ensure_connection()
    enough.wait()


class TestANetworkThatSwallowsPackets:
    @pytest.mark.parametrize("held", [0, 4])
    def test_connecting_has_a_limit_for_all_who_wait(self, make_alias, observer, relay, held):
        # The limit holds after the stall too, when fifty threads, the relay and a busy machine share what connecting takes.
        alias = make_alias(pool=FIVE, options={"connect_timeout": 4}, PORT=relay.port).alias
        enough = threading.Event()
        holders = [InThread(hold, alias, enough) for _ in range(held)]
        if held:
            eventually(lambda: status_of(connections[alias])["out"], lambda out: out == held)
        relay.stall(new=True)
        errors = [*all_at_once(50, lambda: look(alias)), *all_at_once(50, lambda: look(alias))]
        assert {number_of(error) for error in errors} <= NO_SERVER
        assert not any(isinstance(error, PoolTimeout) for error in errors)
        relay.resume()
        before = observer.count("Connections")
        results = all_at_once(50, lambda: look(alias))
        enough.set()
        for holder in holders:
            holder.join()
        assert {type(result) for result in results} == {int}
        assert observer.count("Connections") - before <= 5
        # They have not tried in turn, each for as long as connecting may take; nor have five at once tried again.
        assert relay.left < 10

    @pytest.mark.parametrize("ending", ["resume", "reset"])
    def test_a_checkout_finds_out_and_lends_a_live_one(self, make_alias, relay, monkeypatch, ending):
        monkeypatch.setattr(liveness, "PING_TIMEOUT", 0.2)
        alias = make_alias(pool={"pool_size": 3, "max_overflow": 0, "ping_after": 0}, PORT=relay.port).alias
        hold_at_once(alias, 3)
        stalled = set(connections[alias].pool.sessions)
        relay.stall()
        assert look(alias)
        getattr(relay, ending)()
        for number in range(20):
            assert execute(connections[alias], f"SELECT {number}") == [(number,)]
            connections[alias].close()
        hold_at_once(alias, 3)
        # What was not tried meanwhile is as good as ever after a stall.
        assert len(connections[alias].pool.sessions & stalled) == {"resume": 2, "reset": 0}[ending]

    def test_a_reset_is_seen_before_lending(self, make_alias, relay):
        alias = make_alias(pool={"pool_size": 3, "max_overflow": 0}, PORT=relay.port).alias
        hold_at_once(alias, 3)
        relay.reset()
        hold_at_once(alias, 3)

    def test_one_slow_connect_holds_up_nobody_else(self, make_alias, relay):
        alias = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 600}, PORT=relay.port).alias
        warm = look(alias)
        with closing(connections[alias]) as own:
            own.ensure_connection()
            relay.hold_connects()
            slow = InThread(look, alias)
            eventually(lambda: relay.held, bool)
        assert {result for _ in range(10) for result in all_at_once(5, lambda: look(alias))} == {warm}
        assert slow.is_alive()
        relay.resume()
        slow.join()
        assert slow.result not in (None, warm)


@pytest.mark.parametrize(
    ("number", "words", "fault"),
    [
        (1836, "Running in read-only mode", Fault.READ_ONLY),
        (1290, "The MySQL server is running with the --super-read-only option so it cannot", Fault.READ_ONLY),
        (1290, "The MySQL server is running with the --secure-file-priv option so it cannot", Fault.NONE),
        (1047, "WSREP has not yet prepared node for application use", Fault.READ_ONLY),
        (1047, "Unknown command", Fault.NONE),
    ],
)
def test_what_servers_say_that_are_not_at_hand(number, words, fault):
    assert fault_of(MySQLdb.OperationalError(number, words)) is fault


class TestFailover:
    @pytest.fixture
    def writer(self, make_alias, observer, account) -> Iterator[Any]:
        """An alias of a user whom a read-only server refuses."""
        wrapper = make_alias(pool={"pool_size": 3, "max_overflow": 0})
        user = wrapper.settings_dict["USER"]
        observer.query(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{user}'@'%%'")
        observer.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {DATABASE}.* TO '{user}'@'%%'")
        yield wrapper
        observer.query("SET GLOBAL read_only = 0")

    def test_a_server_that_turned_read_only_loses_its_connections(self, writer, observer, account, caplog):
        hold_at_once(writer.alias, 3)
        before = observer.connections_of(writer.settings_dict["USER"])
        observer.query("SET GLOBAL read_only = 1")
        assert number_of(error_of(execute, writer, account.deposit)) == 1290
        assert backend_pid(writer) not in before
        writer.close()
        hold_at_once(writer.alias, 3)
        eventually(lambda: observer.connections_of(writer.settings_dict["USER"]) & before, lambda left: not left)
        eventually(lambda: caplog.text, lambda text: "the server takes no writes" in text)

    def test_a_connection_that_was_opened_since_stays(self, writer, observer, account, monkeypatch):
        """What an older connection says of its server is told once."""
        # It takes the first connection for want of a better one, and no time comes to look for that: however slow the
        # machine, and before the maintenance thread has the idle one out, for its first probe.
        monkeypatch.setattr(connector, "HOPE", 0)
        monkeypatch.setattr(writes, "FIRST_PAUSE", 3600)
        monkeypatch.setattr(writes, "LONGEST_PAUSE", 3600)
        in_turns = threading.Barrier(2)

        def fail_late() -> None:
            own = connections[writer.alias]
            own.ensure_connection()
            in_turns.wait()
            in_turns.wait()
            execute(own, account.deposit)

        late = InThread(fail_late)
        in_turns.wait()
        execute(writer, account.deposit)
        observer.query("SET GLOBAL read_only = 1")
        assert number_of(error_of(execute, writer, account.deposit)) == 1290
        pid = backend_pid(writer)
        writer.close()
        in_turns.wait()
        late.join()
        assert number_of(late.error) == 1290
        assert look(writer.alias) == pid

    def test_reading_goes_on(self, writer, observer, account):
        pid = look(writer.alias)
        observer.query("SET GLOBAL read_only = 1")
        assert execute(writer, "SELECT COUNT(*) FROM shop_account") == [(1,)]
        assert backend_pid(writer) == pid

    def test_the_next_connection_resolves_the_name_again(self, make_alias, observer, account, relay, server, stoppable):
        """The relay stands for a name that leads to the new primary; it cuts nothing: the old one lives, read-only."""
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0}, PORT=relay.port)
        user, password = wrapper.settings_dict["USER"], wrapper.settings_dict["PASSWORD"]
        observer.query(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{user}'@'%%'")
        observer.query(f"GRANT SELECT, INSERT, UPDATE ON {DATABASE}.* TO '{user}'@'%%'")
        with PrivateServer() as primary, closing(primary.connect()) as there:
            there.query(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{password}'")
            there.query(f"CREATE DATABASE {DATABASE}")
            there.query(f"GRANT ALL ON {DATABASE}.* TO '{user}'@'%'")
            there.query(f"CREATE TABLE {DATABASE}.shop_account (balance INT)")
            hold_at_once(wrapper.alias, 2)
            backend_pid(wrapper)
            try:
                observer.query("SET GLOBAL read_only = 1")
                relay.lead_to(primary.host, primary.port)
                assert number_of(error_of(execute, wrapper, account.deposit)) == 1290
                execute(wrapper, "INSERT INTO shop_account VALUES (5)")
                wrapper.close()
                assert port_of(wrapper.alias) == primary.port
            finally:
                observer.query("SET GLOBAL read_only = 0")
            with there.cursor() as cursor:
                cursor.execute(f"SELECT balance FROM {DATABASE}.shop_account")
                assert cursor.fetchall() == ((5,),)
            relay.redirect(server.host, server.port)
            assert port_of(wrapper.alias) == server.port

    def test_new_sessions_that_are_read_only(self, make_alias, observer, server, account):
        """Error 1792: the server gives every new session read-only transactions."""
        name = "tx_read_only" if server.is_mariadb else "transaction_read_only"
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        observer.query(f"SET GLOBAL {name} = 1")
        try:
            pid = backend_pid(wrapper)
        finally:
            observer.query(f"SET GLOBAL {name} = 0")
        assert number_of(error_of(execute, wrapper, account.deposit)) == 1792
        execute(wrapper, account.deposit)
        assert account.balance == 1
        assert backend_pid(wrapper) != pid

    @pytest.mark.parametrize("wish", ["SET SESSION TRANSACTION READ ONLY", "START TRANSACTION READ ONLY"])
    def test_a_session_that_asked_for_read_only_keeps_its_connection(self, make_alias, account, wish):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
        pid = backend_pid(wrapper)
        execute(wrapper, wish)
        assert number_of(error_of(execute, wrapper, account.deposit)) == 1792
        assert backend_pid(wrapper) == pid
        execute(wrapper, "ROLLBACK")
        wrapper.close()
        execute(wrapper, account.deposit)
        assert account.balance == 1

    def test_a_session_whose_init_command_asked_for_it_keeps_it(self, make_alias, account):
        wrapper = make_alias(options={"init_command": "SET SESSION TRANSACTION READ ONLY"})
        pid = backend_pid(wrapper)
        assert number_of(error_of(execute, wrapper, account.deposit)) == 1792
        assert backend_pid(wrapper) == pid


def port_of(alias: str) -> int:
    """Where a new request's connection leads to."""
    with closing(connections[alias]) as own:
        return int(execute(own, "SELECT @@port")[0][0])


def fail(error: Exception, alias: str) -> bool:
    raise ZeroDivisionError


def note(error: Exception, alias: str) -> None:
    seen.append((error.args[0], alias))


seen: list[tuple[int, str]] = []


HOOKS = [
    ("tests.helpers.discard", False),
    ("tests.helpers.keep", True),
    (f"{__name__}.fail", True),
    (f"{__name__}.note", True),
]


class TestDiscardOnError:
    @pytest.mark.parametrize(("hook", "is_kept"), HOOKS)
    def test_for_an_error_that_costs_no_connection(self, make_alias, hook, is_kept):
        wrapper = make_alias(pool={"discard_on_error": hook})
        pid = backend_pid(wrapper)
        assert error_of(execute, wrapper, "SELECT * FROM nowhere").args[0] == 1146
        assert (backend_pid(wrapper) == pid) is is_kept

    @holds
    def test_a_veto(self, make_alias, account):
        wrapper = make_alias(pool={"discard_on_error": "tests.helpers.keep"})
        pid = backend_pid(wrapper)
        wrapper.connection.query("SET SESSION TRANSACTION READ ONLY")  # the pool does not see it
        assert number_of(error_of(execute, wrapper, account.deposit)) == 1792
        assert backend_pid(wrapper) == pid

    @holds
    @pytest.mark.usefixtures("never_looked_at_again")
    def test_a_veto_for_a_dead_one_lends_it_to_nobody_else(self, make_alias, observer):
        wrapper = make_alias(pool={"discard_on_error": "tests.helpers.keep"})
        observer.kill(backend_pid(wrapper))
        for _ in range(2):
            assert number_of(error_of(backend_pid, wrapper)) in LOST
        wrapper.close()
        assert look(wrapper.alias)

    def test_a_hook_that_fails_is_logged_and_not_heeded(self, make_alias, caplog):
        wrapper = make_alias(pool={"discard_on_error": f"{__name__}.fail"})
        with caplog.at_level(logging.ERROR, "django_mysqlpool"):
            assert error_of(execute, wrapper, "SELECT * FROM nowhere").args[0] == 1146
            wrapper.close()  # the log is written where nothing is in the middle of anything
            # (The maintenance thread may be doing it just now.)
            eventually(lambda: caplog.text, lambda text: "discard_on_error failed" in text)
        assert "ZeroDivisionError" in caplog.text

    def test_it_is_told_the_error_and_the_alias(self, make_alias):
        seen.clear()
        wrapper = make_alias(pool={"discard_on_error": f"{__name__}.note"})
        error_of(execute, wrapper, "SELECT * FROM nowhere")
        assert seen == [(1146, wrapper.alias)]

    def test_the_driver_gives_the_error_of_a_commit_to_it_too(self, make_alias, observer):
        seen.clear()
        wrapper = make_alias(pool={"discard_on_error": f"{__name__}.note"})
        with pytest.raises(OperationalError), transaction.atomic(wrapper.alias):
            observer.kill(backend_pid(wrapper))
        assert {alias for _, alias in seen} == {wrapper.alias}
        assert {number for number, _ in seen} <= LOST


@pytest.mark.usefixtures("held_for_long")
class TestAConnectionThatIsHeldForLong:
    def test_is_looked_at_before_its_next_statement(self, make_alias, observer):
        wrapper = make_alias()
        pid = backend_pid(wrapper)
        observer.kill(pid)
        assert backend_pid(wrapper) != pid

    def test_one_that_hangs_is_pinged(self, make_alias, relay):
        wrapper = make_alias(pool={"ping_after": 0}, PORT=relay.port)
        pid = backend_pid(wrapper)
        relay.stall()
        assert backend_pid(wrapper) != pid

    def test_a_live_one_stays(self, make_alias):
        wrapper = make_alias(pool={"ping_after": 0})
        assert backend_pid(wrapper) == backend_pid(wrapper)

    def test_not_in_a_transaction(self, make_alias, observer, account):
        wrapper = make_alias()
        with pytest.raises(Error) as caught, transaction.atomic(wrapper.alias):
            execute(wrapper, account.deposit)
            observer.kill(backend_pid(wrapper))
            execute(wrapper, account.deposit)
        assert number_of(caught.value) in LOST
        assert account.balance == 0


class TestWaiters:
    def test_who_gives_up_swallows_no_connection(self, make_alias, monkeypatch):
        """Many who wait for next to nothing, against a few who wait for long."""
        alias = make_alias(pool={"pool_size": 2, "max_overflow": 0}).alias
        assert look(alias)
        by_name = property(
            lambda _: 60.0 if threading.current_thread().name.startswith("patient") else 0.002, lambda *_: None
        )
        monkeypatch.setattr(SlotPool, "timeout", by_name, raising=False)

        def request(_: int) -> str:
            try:
                with closing(connections[alias]) as own:
                    execute(own, "SELECT SLEEP(0.001)")
                return "served"
            except PoolTimeout:
                return "gave up"

        with ThreadPoolExecutor(20) as impatient, ThreadPoolExecutor(3, "patient") as patient:
            results = impatient.map(request, range(2000))
            assert set(patient.map(request, range(200))) == {"served"}
            assert set(results) == {"served", "gave up"}
        status = status_of(connections[alias])
        assert (status["open"], status["idle"], status["waiting"]) == (2, 2, 0)
        hold_at_once(alias, 2)

    @holds
    def test_what_arrives_while_one_gives_up_is_taken(self, make_alias, monkeypatch):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0})
        pid = backend_pid(wrapper)
        slots = wrapper.pool.source
        leave, gives_up, may_leave = slots.queue._dequeue, threading.Event(), threading.Event()

        def leave_late(waiter: Any) -> bool:
            gives_up.set()
            may_leave.wait()
            return bool(leave(waiter))

        monkeypatch.setattr(slots.queue, "_dequeue", leave_late)
        waiting = InThread(look, wrapper.alias)
        gives_up.wait()
        wrapper.close()
        may_leave.set()
        waiting.join()
        assert waiting.result == pid

    def test_more_than_max_waiting_are_refused_at_once(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 600, "max_waiting": 1})
        wrapper.ensure_connection()
        waiting = InThread(look, wrapper.alias)
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
        refused = InThread(look, wrapper.alias)
        refused.join()
        assert "max_waiting = 1 threads wait for one already" in str(refused.error)
        wrapper.close()
        waiting.join()
        assert waiting.result

    def test_a_burst_opens_no_connection_for_each_request(self, make_alias, observer):
        alias = make_alias(pool={"pool_size": 1, "max_overflow": 9}).alias
        before = observer.count("Connections")
        for _ in range(20):
            hold_at_once(alias, 10)
        assert observer.count("Connections") - before <= 10
