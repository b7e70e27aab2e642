"""Servers that take no writes, behind a name or a balancer: what that costs, in errors, connections and lines of a log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from django.db import Error, connections
from django.db.backends.signals import connection_created

from devtools.server import PrivateServer
from django_mysqlpool import PoolTimeout, hold_connection
from django_mysqlpool.mysqlpool.pool import writes as writes_module
from django_mysqlpool.mysqlpool.pool.writes import FIRST_PAUSE, LASTS, LONGEST_PAUSE, ServerState, Writes
from tests.helpers import DATABASE, eventually, hold_at_once, holds, tell_all
from tests.relay import Relay

pytestmark = [pytest.mark.server, pytest.mark.mode]

USER, PASSWORD = "shop", "s3cret-of-a-test"
WRITE = "INSERT INTO notes VALUES (1)"
REFUSED = 1290


class Node:
    """A server, and a look at it from outside."""

    def __init__(self, server: PrivateServer) -> None:
        self.server = server
        self.address = (server.host, server.port)
        self._connection = server.connect()
        self.query(f"CREATE DATABASE {DATABASE}")
        self.query(f"CREATE TABLE {DATABASE}.notes (n INT)")
        self.query(f"CREATE USER {USER}@'%%' IDENTIFIED BY '{PASSWORD}'")
        self.query(f"GRANT SELECT, INSERT, EXECUTE, CREATE TEMPORARY TABLES ON {DATABASE}.* TO {USER}@'%%'")

    def query(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall())

    def turn_read_only(self, *, on: bool = True) -> None:
        self.query(f"SET GLOBAL read_only = {int(on)}")

    def begin_read_only(self, *, on: bool = True) -> None:
        """Have new sessions begin with read-only transactions."""
        name = "tx_read_only" if self.server.is_mariadb else "transaction_read_only"
        self.query(f"SET GLOBAL {name} = {int(on)}")

    def ids(self) -> set[int]:
        """Of the connections to it."""
        rows = self.query("SELECT id FROM information_schema.processlist WHERE user = %s", USER)
        return {row[0] for row in rows}

    def connects(self) -> int:
        return int(self.query("SHOW GLOBAL STATUS LIKE 'Connections'")[0][1])


@pytest.fixture(scope="module")
def both() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        yield [Node(stack.enter_context(PrivateServer())) for _ in range(2)]


@pytest.fixture
def nodes(both) -> Iterator[list[Node]]:
    yield both
    for node in both:
        node.turn_read_only(on=False)
        node.begin_read_only(on=False)


class Balancer(Relay):
    """Leads each new client to the server that has the fewest."""

    def __init__(self, nodes: list[Node]) -> None:
        self._addresses = [node.address for node in nodes]
        super().__init__(*self._addresses[0])

    def _let_in(self, client: Any) -> None:
        at = [pair.server.getpeername() for pair in self._pairs]
        self._target = min(self._addresses, key=at.count)
        super()._let_in(client)


@pytest.fixture
def relay(nodes) -> Iterator[Relay]:
    """A name, which leads to the first node."""
    with Relay(*nodes[0].address) as relay:
        yield relay


@pytest.fixture
def balancer(nodes) -> Iterator[Balancer]:
    with Balancer(nodes) as balancer:
        yield balancer


@pytest.fixture
def alias_at(make_alias) -> Callable[..., str]:
    def make(relay: Relay, **pool: Any) -> str:
        options = {"pool_size": 6, "max_overflow": 0, "timeout": 20, **pool}
        return make_alias(pool=options, HOST="127.0.0.1", PORT=relay.port, USER=USER, PASSWORD=PASSWORD).alias

    return make


@pytest.fixture
def log(caplog) -> Callable[[], list[str]]:
    """The lines of the log that a site's people see."""
    caplog.set_level(logging.WARNING, "django_mysqlpool")

    def lines() -> list[str]:
        tell_all()
        return [record.getMessage() for record in caplog.records if record.name == "django_mysqlpool"]

    return lines


def request(alias: str, statement: str = WRITE) -> int:
    """The number of the error that a request of one statement ends with, or 0."""
    with closing(connections[alias]) as own:
        try:
            with own.cursor() as cursor:
                cursor.execute(statement)
        except PoolTimeout:
            raise
        except Error as error:
            return int(error.args[0])
        return 0


def requests(alias: str, number: int, statement: str = WRITE) -> list[int]:
    """The errors of as many requests, one after the other."""
    return [error for _ in range(number) if (error := request(alias, statement))]


def in_threads(number: int, action: Callable[[], Any]) -> list[Any]:
    results: list[Any] = []
    barrier = threading.Barrier(number, timeout=60)

    def run() -> None:
        barrier.wait()
        try:
            results.append(action())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class TestOneSickNode:
    """Of two, three connections each; the balancer would lead every new one to the node that loses its own."""

    def test_costs_its_own_connections_and_one_error(self, nodes, balancer, alias_at, log):
        well, sick = nodes
        alias = alias_at(balancer, use_lifo=False)  # each in its turn
        hold_at_once(alias, 6)
        stay = well.ids()
        assert (len(stay), len(sick.ids())) == (3, 3)
        sick.turn_read_only()
        assert requests(alias, 100) == [REFUSED]
        assert well.ids() >= stay
        assert len(log()) == 1
        assert f":{sick.server.port}" in log()[0]

    def test_under_load_the_others_errors_are_those_that_were_on_their_way(self, nodes, balancer, alias_at, log):
        well, sick = nodes
        alias = alias_at(balancer, use_lifo=False)  # each in its turn
        hold_at_once(alias, 6)
        stay = well.ids()
        sick.turn_read_only()
        errors = [error for result in in_threads(6, lambda: requests(alias, 50)) for error in result]
        assert 1 <= len(errors) <= 3
        assert well.ids() >= stay
        assert len(log()) == 1

    def test_a_node_that_recovers_has_its_share_again(self, nodes, balancer, alias_at, log):
        alias = alias_at(balancer, use_lifo=False)  # each in its turn
        hold_at_once(alias, 6)
        nodes[1].turn_read_only()
        assert requests(alias, 20) == [REFUSED]
        nodes[1].turn_read_only(on=False)

        def look() -> int:
            hold_at_once(alias, 6)
            return len(nodes[1].ids())

        eventually(look, lambda number: number == 3)
        assert requests(alias, 20) == []
        assert len(log()) == 2
        assert "takes writes again" in log()[1]

    def test_what_is_held_is_asked_when_it_comes_back(self, nodes, balancer, alias_at):
        alias = alias_at(balancer, use_lifo=False)  # each in its turn
        hold_at_once(alias, 6)
        nodes[1].turn_read_only()
        outcomes, barrier = [], threading.Barrier(6, timeout=60)

        def hold_and_write() -> None:
            with closing(connections[alias]) as own, hold_connection(alias):
                own.ensure_connection()
                barrier.wait()
                outcomes.extend(requests_held(alias, 1))
                barrier.wait()

        in_threads(6, hold_and_write)
        assert outcomes == [REFUSED] * 3
        assert requests(alias, 30) == []

    @pytest.mark.parametrize("pool_class", ["NullPool", "sqlalchemy.pool.QueuePool", "StaticPool"])
    def test_of_another_pool_class_no_request_fails_for_it_that_only_reads(
        self, nodes, balancer, alias_at, make_alias, pool_class
    ):
        options = {"pool_class": pool_class}
        alias = make_alias(pool=options, HOST="127.0.0.1", PORT=balancer.port, USER=USER, PASSWORD=PASSWORD).alias
        for node in nodes:
            node.turn_read_only()
        for _ in range(10):
            assert request(alias, "SELECT COUNT(*) FROM notes") == 0
            assert request(alias) == REFUSED


def requests_held(alias: str, number: int) -> list[int]:
    """The same of one that does not return."""

    def write() -> int:
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute(WRITE)
        except Error as error:
            return int(error.args[0])
        return 0

    return [error for _ in range(number) if (error := write())]


class TestANameThatStillLeadsToTheBadServer:
    def test_is_no_storm(self, nodes, relay, alias_at, log):
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        before, began = relay.connects, time.monotonic()
        nodes[0].turn_read_only()
        assert requests(alias, 210) == [REFUSED] * 210
        # Each old connection is replaced once; then there is one attempt after each pause.
        pauses = (time.monotonic() - began) / (0.5 * FIRST_PAUSE)
        assert relay.connects - before <= 6 + 1 + pauses
        assert len(log()) == 1

    def test_under_load_neither(self, nodes, relay, alias_at, log):
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        before, began = relay.connects, time.monotonic()
        nodes[0].turn_read_only()
        results = in_threads(12, lambda: requests(alias, 30))
        assert results == [[REFUSED] * 30] * 12
        pauses = (time.monotonic() - began) / (0.5 * FIRST_PAUSE)
        assert relay.connects - before <= 2 * 6 + pauses
        assert len(log()) == 1

    def test_reading_goes_on(self, nodes, relay, alias_at):
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        nodes[0].turn_read_only()
        assert request(alias) == REFUSED
        assert in_threads(12, lambda: requests(alias, 20, "SELECT COUNT(*) FROM notes")) == [[]] * 12

    def test_reading_goes_on_where_others_are_held_of_which_nobody_knows(self, nodes, relay, alias_at, monkeypatch):
        alias = alias_at(relay, pool_size=2, timeout=2)
        with closing(connections[alias]) as own, hold_connection(alias):
            own.ensure_connection()
            nodes[0].turn_read_only()
            assert in_threads(1, lambda: request(alias)) == [REFUSED]
            assert in_threads(1, lambda: request(alias, "SELECT COUNT(*) FROM notes")) == [0]

    def test_the_good_server_is_found_once_the_name_leads_to_it(self, nodes, relay, alias_at, log):
        bad, good = nodes
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        bad.turn_read_only()
        assert requests(alias, 20) == [REFUSED] * 20
        relay.lead_to(*good.address)
        began = time.monotonic()
        eventually(lambda: request(alias), lambda error: not error)
        assert time.monotonic() - began < LONGEST_PAUSE + 5
        assert requests(alias, 50) == []
        hold_at_once(alias, 6)
        eventually(bad.ids, lambda ids: not ids)
        assert len(log()) == 1

    @holds
    def test_by_a_thread_that_never_gives_back_too(self, nodes, relay, alias_at):
        bad, good = nodes
        alias = alias_at(relay)
        assert requests_held(alias, 1) == []
        bad.turn_read_only()
        assert requests_held(alias, 20) == [REFUSED] * 20
        relay.lead_to(*good.address)
        eventually(lambda: requests_held(alias, 1), lambda errors: not errors)
        connections[alias].close()

    def test_a_server_that_takes_writes_again(self, nodes, relay, alias_at, log):
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        nodes[0].turn_read_only()
        assert requests(alias, 20) == [REFUSED] * 20
        nodes[0].turn_read_only(on=False)
        before = relay.connects
        assert requests(alias, 100) == []
        assert relay.connects - before <= 2 * 6
        assert len(log()) <= 2


class TestAReplica:
    """What took no writes when the pool first connected."""

    @pytest.mark.parametrize("kind", ["turn_read_only", "begin_read_only"])
    def test_a_mistaken_write_is_its_statements_error_and_nothing_more(self, nodes, relay, alias_at, log, kind):
        getattr(nodes[0], kind)()
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        before, ids = relay.connects, nodes[0].ids()
        assert len(set(requests(alias, 186))) == 1
        hold_at_once(alias, 6)
        assert relay.connects == before
        assert nodes[0].ids() == ids
        assert log() == []

    def test_one_that_was_opened_for_another_pool_is_no_replica(self, nodes, relay, alias_at, log):
        alias = alias_at(relay)
        assert request(alias) == 0
        connections[alias].close_pool()
        nodes[0].turn_read_only()
        assert requests(alias, 10) == [REFUSED] * 10
        assert log() == []  # after close_pool() it is looked at anew


class TestASessionThatMadeItselfReadOnly:
    """Error 1792 is what it asked for."""

    WISH = "SET SESSION TRANSACTION READ ONLY"

    @pytest.fixture
    def of_receiver(self, relay, alias_at) -> Iterator[str]:
        alias = alias_at(relay)

        def receiver(connection: Any, **kwargs: Any) -> None:
            if connection.alias == alias:
                with connection.cursor() as cursor:
                    cursor.execute(self.WISH)

        connection_created.connect(receiver)
        yield alias
        connection_created.disconnect(receiver)

    @pytest.fixture
    def of_init_command(self, relay, make_alias) -> str:
        options = {"init_command": self.WISH}
        return make_alias(pool=True, options=options, HOST="127.0.0.1", PORT=relay.port, USER=USER, PASSWORD=PASSWORD).alias

    @pytest.fixture
    def of_file(self, relay, make_alias, tmp_path) -> str:
        file = tmp_path / "my.cnf"
        file.write_text(f"[client]\ninit-command={self.WISH}\n")
        options = {"read_default_file": str(file)}
        return make_alias(pool=True, options=options, HOST="127.0.0.1", PORT=relay.port, USER=USER, PASSWORD=PASSWORD).alias

    @pytest.mark.parametrize("kind", ["of_receiver", "of_init_command", "of_file"])
    def test_it_costs_no_connection(self, request, relay, nodes, log, kind):
        alias = request.getfixturevalue(kind)
        hold_at_once(alias, 3)
        before, ids = relay.connects, nodes[0].ids()
        if not requests_of(alias, 1):
            pytest.skip("the driver does not read init-command from a file")
        assert requests_of(alias, 20) == [1792] * 20
        assert relay.connects == before
        assert nodes[0].ids() == ids
        assert log() == []

    def test_asked_of_the_drivers_connection_it_is_seen_too(self, relay, nodes, alias_at, log):
        alias = alias_at(relay)
        hold_at_once(alias, 3)
        ids = nodes[0].ids()
        with closing(connections[alias]) as own, hold_connection(alias):
            own.ensure_connection()
            own.connection.query(self.WISH)
            assert requests_held(alias, 1) == [1792]
            assert requests_held(alias, 1) == [1792]
        assert nodes[0].ids() == ids
        assert log() == []


requests_of = requests  # (pytest has a fixture of that kind of name)


class TestDiscardOnError:
    def test_true_discards_that_one_connection(self, nodes, relay, alias_at, log):
        alias = alias_at(relay, discard_on_error="tests.helpers.discard")
        hold_at_once(alias, 6)
        ids = nodes[0].ids()
        nodes[0].turn_read_only()
        assert request(alias) == REFUSED
        hold_at_once(alias, 6)
        assert len(nodes[0].ids() & ids) == 5
        assert log() == []

    def test_false_keeps_all(self, nodes, relay, alias_at, log):
        alias = alias_at(relay, discard_on_error="tests.helpers.keep")
        hold_at_once(alias, 6)
        ids = nodes[0].ids()
        nodes[0].turn_read_only()
        assert requests(alias, 5) == [REFUSED] * 5
        assert nodes[0].ids() == ids
        assert log() == []


class TestANodeWithoutItsCluster:
    """What a Galera node says, from a server that is asked to say it."""

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (1047, "WSREP has not yet prepared node for application use"),
            (1180, 'Got error 5 "Not connected to Primary Component" during COMMIT'),
        ],
    )
    def test_loses_that_connection_and_the_others_are_asked(self, nodes, relay, alias_at, log, number, words):
        alias = alias_at(relay)
        hold_at_once(alias, 6)
        before, ids = relay.connects, nodes[0].ids()
        signal = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{words}'"
        assert request(alias, signal) == number
        hold_at_once(alias, 6)
        assert relay.connects == before + 1
        assert len(nodes[0].ids() & ids) == 5
        assert len(log()) == 1


class TestWrites:
    """What a pool knows, without a server."""

    def test_what_a_server_says(self):
        rows = [("hostname", "db1"), ("port", "3307"), ("read_only", "OFF"), ("tx_read_only", "OFF"), ("wait_timeout", 60)]
        assert ServerState.of(rows) == ServerState("db1:3307", False, False, True, 60)
        assert ServerState.of([*rows[:2], ("read_only", "NO_LOCK")]).is_read_only
        for name in ("super_read_only", "innodb_read_only"):
            state = ServerState.of([(name, "ON")])
            assert state.is_read_only
            assert not state.begins_read_only
        assert ServerState.of([("transaction_read_only", "ON")]).begins_read_only
        assert not ServerState.of([]).is_read_only

    def test_pauses_grow_and_end_with_a_server_that_takes_writes(self, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(writes_module.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(writes_module.random, "uniform", lambda least, most: most)
        writes = Writes()
        assert writes.note_refusal("db1", says_so=True)
        assert not writes.note_refusal("db1", says_so=True)
        assert writes.note_refusal("db2", says_so=False)
        pauses = []
        for _ in range(5):
            assert writes.may_attempt()
            writes.note_refusal_of_new()
            began = now[0]
            while not writes.may_attempt():
                now[0] += 0.25
            writes._next_attempt = 0.0
            pauses.append(now[0] - began)
        assert pauses == [1, 2, 4, LONGEST_PAUSE, LONGEST_PAUSE]
        assert writes.note_taker("db1")
        assert not writes.note_taker("db1")
        assert not writes.note_taker("db2")
        assert not writes.note_refusal("db2", says_so=False)
        assert writes.may_attempt()
        now[0] += LASTS + 1
        assert not writes.are_in_doubt
        assert writes.note_refusal("db2", says_so=True)
