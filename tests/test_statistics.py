"""Statistics: the counts of a pool add up at every look, and each close has its reason."""

from __future__ import annotations

import gc
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction
from MySQLdb.cursors import SSCursor

from django_mysqlpool import (
    PoolTimeout,
    auto_close_db,
    close_pool,
    drain_pool,
    hold_connection,
    pool_statistics,
    pool_status,
    resize_pool,
)
from django_mysqlpool.mysqlpool.backend.pools import pool_holders
from django_mysqlpool.mysqlpool.pool import pool, trace
from django_mysqlpool.mysqlpool.pool.connection import Lease
from django_mysqlpool.mysqlpool.pool.maintenance import PoolMaintenance
from tests.helpers import (
    DATABASE,
    backend_pid,
    discard,
    eventually,
    fetch,
    hold_at_once,
    holds,
    look,
    mysqlclient_only,
    status_of,
    tell_all,
    wrong_sums,
)

pytestmark = [pytest.mark.python, pytest.mark.sqlalchemy, pytest.mark.driver, pytest.mark.server]

HISTOGRAMS = {"wait_time": "checkouts", "use_time": "checkins", "connect_time": "opened", "reset_time": "resets"}


def statistics_of(wrapper: Any) -> dict[str, Any]:
    return pool_statistics()[wrapper.pool.name]


def assert_all_adds_up(wrapper: Any) -> dict[str, Any]:
    """At rest: the histograms have as many entries as there were events, and the server counts what is open."""
    counts = statistics_of(wrapper)
    assert not wrong_sums(counts)
    for name, count in HISTOGRAMS.items():
        assert counts[name]["count"] == sum(counts[name]["counts"]) == counts[count], name
        assert len(counts[name]["counts"]) == len(counts[name]["bounds"]) + 1
    assert counts["open"] == status_of(wrapper)["open"]
    return counts


def test_it_is_json_and_has_the_numbers_of_the_status(make_alias):
    wrapper = make_alias()
    backend_pid(wrapper)
    counts = json.loads(json.dumps(statistics_of(wrapper)))
    status = status_of(wrapper)
    same = ("aliases", "address", "cap", "open", "idle", "out", "opening", "waiting", "pins")
    assert {key: counts[key] for key in same} == {key: status[key] for key in same}
    assert counts["age"] > 0


@auto_close_db
def work(alias: str, number: int) -> None:
    """Leave a session clean, dirty, lost, or with an error."""
    own = connections[alias]
    with suppress(DatabaseError):
        if number % 7 == 0:
            fetch(own, f"KILL {backend_pid(own)}")
        else:
            fetch(own, ("SET @left = 1", "SELECT nonsense FROM nowhere", "SELECT 1", "SELECT 2", "SELECT 3")[number % 5])


def test_they_add_up_at_every_look_under_load(make_alias, observer):
    wrapper = make_alias(pool={"pool_size": 3, "max_overflow": 0, "timeout": 60, "recycle": 1})
    stop = threading.Event()

    def work_until_told(first: int) -> None:
        number = first
        while not stop.is_set():
            work(wrapper.alias, number)
            number += 1

    with ThreadPoolExecutor(8) as executor:
        futures = [executor.submit(work_until_told, 1000 * number) for number in range(8)]
        try:
            wrong: list[str] = []
            looks = 0
            while statistics_of(wrapper)["checkouts"] < 1_500 or looks < 200:
                if looks == 100:
                    close_pool(wrapper.alias)
                if looks == 150:
                    drain_pool(wrapper.alias)
                wrong += wrong_sums(statistics_of(wrapper))
                looks += 1
        finally:
            stop.set()
        for future in futures:
            future.result(60)
    assert not wrong, wrong[:3]
    counts = assert_all_adds_up(wrapper)
    assert counts["out"] == 0
    assert counts["waits"] > 0
    assert counts["resets"] > 0
    assert counts["closed"]["lost"] > 0
    assert len(observer.connections_of(wrapper.settings_dict["USER"])) == counts["open"]


def test_and_with_a_pool_class_of_sqlalchemys(make_alias):
    for pool_class in ("NullPool", "StaticPool", "sqlalchemy.pool.QueuePool", "SingletonThreadPool"):
        wrapper = make_alias(pool={"pool_class": pool_class})
        for _ in range(3):
            look(wrapper.alias)
        counts = statistics_of(wrapper)
        assert not wrong_sums(counts)
        assert counts["checkouts"] == counts["checkins"] == 3
        close_pool(wrapper.alias)
        assert not wrong_sums(statistics_of(wrapper))


def test_a_connection_that_two_threads_get_at_once(make_alias, monkeypatch):
    wrapper = make_alias(pool={"pool_class": "StaticPool"})
    look(wrapper.alias)
    both = threading.Barrier(2, timeout=60)

    def lend_together(*facts: Any) -> Lease:
        both.wait()
        return Lease(*facts)

    monkeypatch.setattr(pool, "Lease", lend_together)
    hold_at_once(wrapper.alias, 2)
    assert not wrong_sums(statistics_of(wrapper))


class Collecting(list[int]):
    """The garbage collector comes when this is read, as it may anywhere."""

    def __iter__(self) -> Iterator[int]:
        gc.collect()
        return super().__iter__()


@holds
def drop_a_wrapper(alias: str, dropped: threading.Event, ended: threading.Event) -> None:
    """Leave a wrapper with its connection to the garbage collector, in a thread that goes on.

    (What a thread that has ended leaves is reclaimed another way.)
    """
    own = connections[alias]
    own.itself = own
    backend_pid(own)
    del connections[alias], own
    dropped.set()
    ended.wait(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", ["a close", "a look"])
def test_the_garbage_collector_closes_a_connection_in_the_middle_of(count, make_alias):
    wrapper = make_alias()

    dropped, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=drop_a_wrapper, args=(wrapper.alias, dropped, ended))
    gc.disable()
    try:
        thread.start()
        assert dropped.wait(60)
        backend_pid(wrapper)
        usage = wrapper.lease.session.history.usage
        usage.use_counts = Collecting(usage.use_counts)
        if count == "a close":
            wrapper.lease.invalidate("abandoned")
            wrapper.close()
        assert not wrong_sums(statistics_of(wrapper))
        expected = {"abandoned": 2 if count == "a close" else 1}
        eventually(lambda: statistics_of(wrapper)["closed"], expected.__eq__)
        assert not wrong_sums(statistics_of(wrapper))
    finally:
        gc.enable()
        ended.set()
        thread.join()
        wrapper.close()


def test_no_lock_is_waited_for_in_the_middle_of_a_count(make_alias, monkeypatch):
    """One thread counts, and the garbage collector has a connection to close; another one closes the pool."""
    wrapper = make_alias(pool={"pool_class": "SingletonThreadPool"})
    dropped, counting, closing, ended = (threading.Event() for _ in range(4))

    class CollectingWhileClosing(list[int]):
        def __iter__(self) -> Iterator[int]:
            if threading.current_thread() is count:
                counting.set()
                closing.wait(60)
                gc.collect()
            return super().__iter__()

    connector = wrapper.pool.connector
    forget = connector._forget_session

    def tell_and_forget(*facts: Any) -> None:
        if threading.current_thread() is close:
            closing.set()
        forget(*facts)

    monkeypatch.setattr(connector, "_forget_session", tell_and_forget)
    keeper = threading.Thread(target=drop_a_wrapper, args=(wrapper.alias, dropped, ended))
    count = threading.Thread(target=wrapper.pool.statistics.snapshot, daemon=True)
    close = threading.Thread(target=wrapper.pool.close, daemon=True)
    gc.disable()
    try:
        keeper.start()
        assert dropped.wait(60)
        look(wrapper.alias)
        usage = next(session for session in wrapper.pool.sessions if session.lease is None).history.usage
        usage.use_counts = CollectingWhileClosing(usage.use_counts)
        count.start()
        assert counting.wait(60)
        close.start()
        count.join(20)
        close.join(20)
        assert not (count.is_alive() or close.is_alive())
        eventually(lambda: status_of(wrapper)["out"], lambda number: number == 0)
    finally:
        gc.enable()
        ended.set()
        keeper.join()


# Reasons


class Interrupt(Exception):
    """Raised by a signal's handler."""


def interrupt_a_statement(wrapper: Any) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        backend_pid(wrapper)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            fetch(wrapper, "SELECT SLEEP(20)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wrapper.close()


def kill(pid: int, wrapper: Any, observer: Any) -> None:
    observer.query(f"KILL {pid}")
    eventually(lambda: observer.connections_of(wrapper.settings_dict["USER"]), lambda ids: pid not in ids)


def kill_in_use(wrapper: Any, observer: Any) -> None:
    with hold_connection(wrapper.alias):
        kill(backend_pid(wrapper), wrapper, observer)
        with pytest.raises(DatabaseError):
            fetch(wrapper, "SELECT 1")
    wrapper.close()


def kill_idle(wrapper: Any, observer: Any) -> None:
    kill(look(wrapper.alias), wrapper, observer)
    look(wrapper.alias)


def expire(wrapper: Any, _: Any) -> None:
    look(wrapper.alias)
    wrapper.pool.server.lifetime = 0
    look(wrapper.alias)


def be_idle(wrapper: Any, _: Any) -> None:
    look(wrapper.alias)
    wrapper.pool.source.idle_timeout = 0
    PoolMaintenance(wrapper.pool).run()


def be_refused(wrapper: Any, _: Any) -> None:
    with hold_connection(wrapper.alias):
        backend_pid(wrapper)
        session = wrapper.lease.session
        session.origin.created_at -= 60
        wrapper.pool.pressure.rise()
    wrapper.close()


def leave_rows(wrapper: Any, _: Any) -> None:
    wrapper.ensure_connection()
    cursor = wrapper.connection.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION ALL SELECT 2")
    wrapper.close()


def close_in_a_block(wrapper: Any, _: Any) -> None:
    with suppress(DatabaseError), transaction.atomic(wrapper.alias):
        fetch(wrapper, "SELECT 1")
        wrapper.close()


def drop_in_a_thread(wrapper: Any, _: Any) -> None:
    def leave() -> None:
        own = connections[wrapper.alias]
        own.set_autocommit(False)
        fetch(own, "SELECT 1")

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    gc.collect()
    PoolMaintenance(wrapper.pool).run()


def drain(wrapper: Any, _: Any) -> None:
    backend_pid(wrapper)
    drain_pool(wrapper.alias)
    wrapper.close()


def close_the_pool(wrapper: Any, _: Any) -> None:
    look(wrapper.alias)
    close_pool(wrapper.alias)


def shrink(wrapper: Any, _: Any) -> None:
    hold_at_once(wrapper.alias, 3)
    resize_pool(wrapper.alias, pool_size=1, max_overflow=0)


def hold_what_no_reset_clears(wrapper: Any, observer: Any) -> None:
    is_mariadb = "MariaDB" in observer.query("SELECT VERSION()")[0][0]
    fetch(wrapper, "SET profiling = 1" if is_mariadb else "SET SESSION optimizer_trace = 'enabled=on'")
    wrapper.close()


def call_what_no_reset_clears(wrapper: Any, observer: Any) -> None:
    if "MariaDB" not in observer.query("SELECT VERSION()")[0][0]:
        pytest.skip("a reset clears it there")
    observer.query(f"CREATE PROCEDURE {DATABASE}.leave_something() SET profiling = 1")
    try:
        with wrapper.cursor() as cursor:
            cursor.callproc("leave_something")
        wrapper.close()
    finally:
        observer.query(f"DROP PROCEDURE {DATABASE}.leave_something")


def fail_with_a_hook(wrapper: Any, _: Any) -> None:
    with pytest.raises(DatabaseError):
        fetch(wrapper, "SELECT nonsense FROM nowhere")
    wrapper.close()


#: What is done, the reason, and options of the pool.
ENDS: dict[str, tuple[Callable[[Any, Any], None], str, dict[str, Any]]] = {
    "expired": (expire, "expired", {}),
    "idle": (be_idle, "idle", {}),
    "another process is refused": (be_refused, "yielded", {}),
    "killed while idle": (kill_idle, "lost", {}),
    "killed in use": (kill_in_use, "lost", {}),
    "unsalvageable": (hold_what_no_reset_clears, "unsalvageable", {}),
    "unsalvageable by stored code": (call_what_no_reset_clears, "unsalvageable", {}),
    "rows left": (leave_rows, "reset_failed", {}),
    "closed in a block": (close_in_a_block, "discarded", {}),
    "discard_on_error": (fail_with_a_hook, "discarded", {"discard_on_error": "tests.helpers.discard"}),
    "interrupted": (lambda wrapper, _: interrupt_a_statement(wrapper), "interrupted", {}),
    "abandoned": (drop_in_a_thread, "abandoned", {}),
    "drained": (drain, "drained", {}),
    "pool closed": (close_the_pool, "pool_closed", {}),
    "resized": (shrink, "surplus", {"pool_size": 3, "max_overflow": 0}),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", ENDS)
def test_the_reason_of_a_close(end, make_alias, observer, caplog):
    assert discard is not None  # the hook of one of them
    act, reason, options = ENDS[end]
    caplog.set_level(logging.DEBUG, "django_mysqlpool")
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, **options})
    act(wrapper, observer)
    eventually(lambda: statistics_of(wrapper)["closed"].get(reason, 0), lambda number: number > 0)
    counts = assert_all_adds_up(wrapper)
    assert set(counts["closed"]) == {reason}, counts["closed"]
    tell_all()
    assert f"Pool {wrapper.pool.name}: a connection is closed: {reason}." in caplog.messages


def test_an_alias_that_is_removed(make_alias):
    wrapper, other = make_alias(), make_alias()
    look(wrapper.alias)
    other.ensure_connection()
    pool = wrapper.pool
    settings = connections.settings.pop(wrapper.alias)
    try:
        eventually(lambda: pool.statistics.snapshot()["closed"], lambda closed: closed == {"unwanted": 1})
    finally:
        connections.settings[wrapper.alias] = settings


# The other counts


@holds
def test_waits_timeouts_and_refusals(make_alias):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.2, "max_waiting": 1})
    backend_pid(wrapper)
    with ThreadPoolExecutor(2) as executor:
        waiting = executor.submit(look, wrapper.alias)
        with pytest.raises(PoolTimeout):
            waiting.result(30)
        wrapper.pool.source.timeout = 60
        waiting = executor.submit(look, wrapper.alias)
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
        with pytest.raises(PoolTimeout):
            executor.submit(look, wrapper.alias).result(30)
        wrapper.close()
        assert waiting.result(30)
    counts = assert_all_adds_up(wrapper)
    assert (counts["waits"], counts["timeouts"], counts["refusals"]) == (1, 1, 1)
    assert counts["wait_time"]["sum"] > 0


def test_connections_that_could_not_be_opened(make_alias):
    wrapper = make_alias(PASSWORD="another one")
    with pytest.raises(DatabaseError):
        look(wrapper.alias)
    counts = assert_all_adds_up(wrapper)
    assert (counts["open_failures"], counts["opened"]) == (1, 0)
    assert counts["address"] is None


def test_resets_and_pins(make_alias):
    wrapper = make_alias(pool={"release": "transaction"})
    fetch(wrapper, "SET @kept = 1")
    fetch(wrapper, "SELECT @kept")
    wrapper.close()
    counts = assert_all_adds_up(wrapper)
    assert counts["resets"] == 1
    assert counts["pins"] == status_of(wrapper)["pins"] == {"SET": 1}


@holds
def test_leaks_and_abandoned_connections(make_alias):
    wrapper = make_alias(pool={"leak_after": 0.01, "pool_size": 2})
    backend_pid(wrapper)
    eventually(lambda: statistics_of(wrapper)["leaks"], lambda number: number == 1)
    thread = threading.Thread(target=lambda: backend_pid(connections[wrapper.alias]))
    thread.start()
    thread.join()
    gc.collect()
    eventually(lambda: statistics_of(wrapper)["reclaimed"], lambda number: number == 1)
    wrapper.close()
    assert_all_adds_up(wrapper)


# Holders


@holds
def test_who_has_the_connections(make_alias):
    wrapper = make_alias()
    fetch(wrapper, "SELECT 'a secret'")
    (holder,) = pool_holders()[wrapper.pool.name]
    assert holder.pop("seconds") >= 0
    assert holder == {
        "alias": wrapper.alias,
        "thread": threading.current_thread().name,
        "work": None,
        "last_statement": "SELECT",
    }
    wrapper.close()
    assert pool_holders()[wrapper.pool.name] == []


# Draining


class TestDrain:
    @holds
    def test_everything_is_renewed_and_nothing_interrupted(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 4, "max_overflow": 0})
        hold_at_once(wrapper.alias, 3)
        user = wrapper.settings_dict["USER"]
        before = observer.connections_of(user)
        assert len(before) == 3
        with transaction.atomic(wrapper.alias):
            pid = backend_pid(wrapper)
            drain_pool(wrapper.alias)
            assert backend_pid(wrapper) == pid  # a transaction goes on
        wrapper.close()
        eventually(lambda: observer.connections_of(user), lambda now: now and not now & before)
        # Others have been opened for those that were idle.
        eventually(lambda: status_of(wrapper)["idle"], lambda number: number == 2)
        assert statistics_of(wrapper)["closed"] == {"drained": 3}

    def test_no_checkout_is_refused_meanwhile(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0, "timeout": 60})
        stop = threading.Event()

        def work() -> int:
            number = 0
            while not stop.is_set():
                look(wrapper.alias)
                number += 1
            return number

        with ThreadPoolExecutor(4) as executor:
            futures = [executor.submit(work) for _ in range(4)]
            try:
                for _ in range(20):
                    before = set(wrapper.pool.sessions)
                    drain_pool()
                    eventually(lambda old=before: old & wrapper.pool.sessions, lambda left: not left)
            finally:
                stop.set()
            assert all(future.result(60) for future in futures)
        assert_all_adds_up(wrapper)

    def test_an_unknown_alias(self):
        with pytest.raises(connections.exception_class):
            drain_pool("nowhere")


# Resizing


class TestResize:
    @holds
    def test_a_waiter_gets_the_new_connection(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 60})
        backend_pid(wrapper)
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(look, wrapper.alias)
            eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
            resize_pool(wrapper.alias, pool_size=2)
            assert waiting.result(30)
        assert (status_of(wrapper)["cap"], status_of(wrapper)["size"]) == (2, 2)

    @holds
    def test_fewer(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 4, "max_overflow": 2, "timeout": 60})
        user = wrapper.settings_dict["USER"]
        fetch(wrapper, "SELECT 1")  # one is out
        barrier, out = threading.Barrier(4, timeout=60), threading.Event()

        def hold() -> None:
            backend_pid(connections[wrapper.alias])
            barrier.wait()
            out.wait(60)
            connections[wrapper.alias].close()

        with ThreadPoolExecutor(3) as executor:
            futures = [executor.submit(hold) for _ in range(3)]
            barrier.wait()
            resize_pool(wrapper.alias, pool_size=1, max_overflow=1)
            assert status_of(wrapper)["cap"] == 2
            assert len(observer.connections_of(user)) == 4  # nothing is taken from its holder
            out.set()
            for future in futures:
                future.result(60)
        wrapper.close()
        eventually(lambda: len(observer.connections_of(user)), lambda number: number <= 2)
        # And there are neither more nor fewer slots than that.
        hold_at_once(wrapper.alias, 2)
        assert wrapper.pool.source.queue.store.number == 2
        assert_all_adds_up(wrapper)

    def test_again_and_again_under_load(self, make_alias, observer):
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 1, "timeout": 60})
        user = wrapper.settings_dict["USER"]
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                look(wrapper.alias)

        with ThreadPoolExecutor(8) as executor:
            futures = [executor.submit(work) for _ in range(8)]
            try:
                for number in range(200):
                    resize_pool(wrapper.alias, pool_size=1 + number % 5, max_overflow=(-1, 0, 2)[number % 3])
                resize_pool(wrapper.alias, pool_size=2, max_overflow=1)
                eventually(lambda: len(observer.connections_of(user)), lambda n: n <= 3)
            finally:
                stop.set()
            for future in futures:
                future.result(60)
        hold_at_once(wrapper.alias, 3)
        assert wrapper.pool.source.queue.store.number == 3
        assert_all_adds_up(wrapper)

    def test_connections_that_are_on_their_way_back(self, make_alias, monkeypatch):
        """They were found fit to be kept before the cap was lowered."""
        wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0})
        source = wrapper.pool.source
        both, release = threading.Barrier(2, timeout=60), source.release

        def release_together(entry: Any, *keep: bool) -> None:
            if both.wait() == 0:
                resize_pool(wrapper.alias, pool_size=1)
            both.wait()
            release(entry, *keep)

        monkeypatch.setattr(source, "release", release_together)
        hold_at_once(wrapper.alias, 2)
        monkeypatch.undo()
        eventually(lambda: status_of(wrapper)["open"], lambda number: number == 1)
        assert statistics_of(wrapper)["closed"] == {"surplus": 1}

    def test_a_size_that_is_not_named_is_as_it_was(self, make_alias):
        wrapper = make_alias(pool={"pool_size": 0, "max_overflow": 3})
        assert status_of(wrapper)["cap"] is None
        resize_pool(wrapper.alias, pool_size=2)
        assert status_of(wrapper)["cap"] == 5
        resize_pool(wrapper.alias, max_overflow=-1)
        resize_pool(wrapper.alias, pool_size=4)
        assert status_of(wrapper)["cap"] is None

    @pytest.mark.parametrize(
        ("sizes", "words"),
        [
            ({"pool_size": -1}, "pool_size must be a whole number, and at least 0, not -1"),
            ({"pool_size": True}, "pool_size must be a whole number"),
            ({"max_overflow": -2}, "max_overflow must be a whole number, and at least -1"),
            ({"pool_size": 1, "max_overflow": 0}, "must be at least min_idle = 2"),
        ],
    )
    def test_what_is_not_possible(self, sizes, words, make_alias):
        wrapper = make_alias(pool={"pool_size": 3, "min_idle": 2})
        with pytest.raises(ValueError, match=words):
            resize_pool(wrapper.alias, **sizes)
        assert wrapper.pool.cap == 13

    def test_nor_another_pool_class_or_no_pool(self, make_alias):
        with pytest.raises(ValueError, match="has a NullPool: only a QueuePool can be resized"):
            resize_pool(make_alias(pool={"pool_class": "NullPool"}).alias, pool_size=2)
        with pytest.raises(ValueError, match="has no pool"):
            resize_pool(make_alias(pool=False).alias, pool_size=2)


# A line for each checkout


@pytest.fixture
def traced(caplog) -> Iterator[Any]:
    with caplog.at_level(logging.DEBUG, "django_mysqlpool"):
        trace.refresh()
        yield caplog
    trace.refresh()


def test_a_line_for_each_checkout_and_checkin(make_alias, traced):
    wrapper = make_alias()

    @auto_close_db
    def import_orders() -> None:
        fetch(connections[wrapper.alias], "SELECT 'a secret'")

    import_orders()
    tell_all()
    lines = [line for line in traced.messages if "check" in line and wrapper.pool.name in line]
    checkin, checkout = sorted(lines, key=lambda line: ": checkout " in line)  # two threads may have logged them
    for line, word in ((checkout, ": checkout "), (checkin, ": checkin ")):
        assert word in line
        assert f"alias '{wrapper.alias}', thread {threading.current_thread().name}" in line
        assert "import_orders" in line
    assert "kept" in checkin
    assert "secret" not in traced.text


@mysqlclient_only("about the log")
def test_a_handler_that_writes_through_the_orm_is_told_once(make_alias, traced):
    wrapper, log = make_alias(), make_alias()
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())
            look(log.alias)

    handler = Handler()
    logging.getLogger("django_mysqlpool").addHandler(handler)
    try:
        for _ in range(5):
            look(wrapper.alias)
        tell_all()
    finally:
        logging.getLogger("django_mysqlpool").removeHandler(handler)
    assert len([line for line in written if f"alias '{wrapper.alias}'" in line]) == 10
    assert not [line for line in written if "checkout" in line and f"alias '{log.alias}'" in line]


@mysqlclient_only("about the log")
def test_such_a_handler_is_not_told_of_the_connections_that_it_closes(make_alias, traced):
    wrapper = make_alias(pool={"pool_class": "NullPool"})
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if wrapper.pool.name in record.getMessage():
                written.append(record.getMessage())
                backend_pid(connections[wrapper.alias])

    handler = Handler()
    logging.getLogger("django_mysqlpool").addHandler(handler)
    try:
        look(wrapper.alias)
        for _ in range(5):
            wrapper.close()
            tell_all()
        assert len([line for line in written if "a connection is closed" in line]) == 1
    finally:
        logging.getLogger("django_mysqlpool").removeHandler(handler)


def test_there_is_one_pool_for_each_name():
    assert set(pool_statistics()) == set(pool_status())


# The server's address


class TestAddress:
    def test_of_a_socket(self, make_alias, observer):
        ((path,),) = observer.query("SELECT @@socket")
        if not Path(path).is_socket():
            pytest.skip("the server is on another machine")
        wrapper = make_alias(HOST=path)
        assert status_of(wrapper)["address"] is None  # nothing is open yet
        look(wrapper.alias)
        assert status_of(wrapper)["address"] == path

    @mysqlclient_only("about its option files")
    def test_of_an_option_file(self, make_alias, observer, tmp_path):
        ((port,),) = observer.query("SELECT @@port")
        file = tmp_path / "my.cnf"
        file.write_text(f"[client]\nhost = 127.0.0.1\nport = {port}\n")
        wrapper = make_alias(HOST="", PORT="", options={"read_default_file": str(file)})
        look(wrapper.alias)
        assert status_of(wrapper)["address"] == f"127.0.0.1:{port}"
