"""The programs of ``test_forks.py``: ``python -m tests.forks.trials NAME ARGUMENT...``, in a process without other threads.

A trial asserts for the parent and, in its children, for the child, whose failure is an exit code that was not expected.
Nothing may be logged: the test looks at stderr.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import django
import MySQLdb
from MySQLdb.cursors import SSCursor

if "--collect" in sys.argv:
    # Before this package's own hook: what is garbage in a child is found by then.
    sys.argv.remove("--collect")
    os.register_at_fork(after_in_child=gc.collect)
django.setup()

from django.db import connection, connections, transaction  # noqa: E402

from django_mysqlpool import auto_close_db, close_pool, pool_statistics, pool_status  # noqa: E402
from django_mysqlpool.mysqlpool.backend.scope import Scope  # noqa: E402
from django_mysqlpool.mysqlpool.drivers import driver_for  # noqa: E402
from django_mysqlpool.mysqlpool.drivers.sockets import peer_of  # noqa: E402
from django_mysqlpool.mysqlpool.pool.registry import registry  # noqa: E402
from tests.shop.models import Account  # noqa: E402

MANY_ROWS = (
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT i, REPEAT('x', 5000) x FROM n"
)


class Left(Exception):
    """How a child leaves that has failed."""


def leave_by_exception() -> None:
    sys.excepthook = lambda *_: None
    raise Left


LEAVE: dict[str, Callable[[], object]] = {
    "_exit": lambda: os._exit(7),
    "exit": lambda: sys.exit(7),
    "exception": leave_by_exception,
}
CODES = {"_exit": 7, "exit": 7, "exception": 1}


def fork(work: Callable[[], object], leave: str = "_exit") -> int:
    """Start a child that does ``work`` and leaves. One that hangs is ended by a signal, for its parent to see."""
    pid = os.fork()
    if pid == 0:
        be_child(work, leave)
    return pid


def be_child(work: Callable[[], object], leave: str = "_exit") -> None:
    signal.alarm(60)
    try:
        work()
    except (SystemExit, Left):
        raise  # a child of this one, on its way out
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
        os._exit(99)
    LEAVE[leave]()


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_child(work: Callable[[], object], leave: str = "_exit") -> None:
    """Have a child do ``work``, leave, and be well all the time."""
    assert wait(fork(work, leave)) == CODES[leave]


def own_id(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]


def descriptors() -> list[int]:
    """The numbers of the sockets of this process' pools."""
    return sorted(session.descriptor for pool in registry.pools() for session in pool.sessions)


@contextmanager
def state(name: str) -> Iterator[int]:
    """This process has a connection, idle, held, or in a transaction; afterwards it must have it still."""
    before = own_id()
    if name == "idle":
        connection.close()
        yield before
    elif name == "held":
        yield before
    elif name == "transaction":
        with transaction.atomic():
            account = Account.objects.create(name=f"of {os.getpid()}")
            yield before
            assert own_id() == before
        assert account.delete()[0] == 1
    assert own_id() == before


def assert_nothing_inherited() -> None:
    assert pool_status() == {}, pool_status()
    assert connection.connection is None
    assert not connection.in_atomic_block
    assert not connection.needs_rollback
    assert not connection.closed_in_transaction
    assert connection.savepoint_ids == connection.atomic_blocks == connection.run_on_commit == []


def use_orm(of_parent: int) -> None:
    """Work in a child as anywhere, on a connection of its own."""
    own = own_id()
    assert own != of_parent
    with transaction.atomic():
        account = Account.objects.create(name=f"of {os.getpid()}")
    assert Account.objects.filter(pk=account.pk).delete()[0] == 1
    assert own_id() == own
    (status,) = pool_status().values()
    assert (status["out"], status["open"]) == (connection.connection is not None, 1)
    (counts,) = pool_statistics().values()
    assert (counts["opened"], counts["closed"]) == (1, {})  # a child counts what is its own


def be_clean(of_parent: int, *, use: bool) -> None:
    assert_nothing_inherited()
    if use:
        use_orm(of_parent)
    gc.collect()


# The trials


def states(name: str) -> None:
    """Children that leave the database alone, that work, and that have a child of their own."""
    with state(name) as before:
        for leave in LEAVE:
            run_child(partial(be_clean, before, use=False), leave)
            run_child(partial(have_child, before, leave), leave)


def have_child(of_parent: int, leave: str) -> None:
    be_clean(of_parent, use=True)
    own = own_id()
    run_child(partial(be_clean, own, use=True), leave)
    assert own_id() == own


def forkpty() -> None:
    with state("held") as before:
        pid, terminal = os.forkpty()
        if pid == 0:
            be_child(partial(be_clean, before, use=True))
        assert wait(pid) == CODES["_exit"]
        os.close(terminal)


def closed_before() -> None:
    """``close_pool()``, then a fork: the server counts no connection of the pool's."""
    busy, ids = threading.Barrier(4), set()

    def hold() -> None:
        with transaction.atomic():  # whatever ``release`` is, it has its connection until all have one
            ids.add(own_id())
            busy.wait()

    def hold_and_close() -> None:
        hold()
        connection.close()

    threads = [threading.Thread(target=hold_and_close) for _ in range(3)]
    for thread in threads:
        thread.start()
    hold()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    close_pool()
    assert descriptors() == []
    wait_until_alone()
    with warnings.catch_warnings():
        ignore_warning_of_threads()  # a thread that was joined may be the kernel's for another moment
        run_child(partial(reconnect, ids))
    reconnect(ids)


def reconnect(closed: set[int]) -> None:
    wait_until_alone()
    assert own_id() not in closed


def wait_until_alone() -> None:
    """Until the server knows of no connection of this user's but the one that asks."""
    entry = connection.settings_dict
    outside = MySQLdb.connect(
        host=entry["HOST"], port=entry["PORT"], user=entry["USER"], password=entry["PASSWORD"], autocommit=True
    )
    with outside.cursor() as cursor:
        while True:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", [entry["USER"]])
            if cursor.fetchall() == ((outside.thread_id(),),):
                break
    outside.close()


def scope() -> None:
    """A fork within a request, whose connections are then not the child's request's."""
    with Scope() as request:
        before = own_id()
        run_child(partial(end_scope, request, before), "exit")
        assert own_id() == before
        assert request.end() is False
    assert own_id() == before
    connection.close()
    decorated = auto_close_db(run_child)
    decorated(partial(be_clean, before, use=True), "exit")
    assert own_id() == before


def end_scope(request: Scope, of_parent: int) -> None:
    be_clean(of_parent, use=True)
    own = own_id()
    assert request.release_idle() is False
    assert connection.connection is None
    assert own_id() == own
    request.end()
    assert connection.connection is None
    (status,) = pool_status().values()
    assert (status["out"], status["idle"]) == (0, 1)


def unread() -> None:
    """A fork between two rows of an unbuffered result."""
    with state("held") as before:
        connection.ensure_connection()
        cursor = connection.connection.cursor(SSCursor)
        cursor.execute(MANY_ROWS)
        rows = [cursor.fetchone()]
        for leave in LEAVE:
            run_child(partial(be_clean, before, use=True), leave)
            run_child(partial(drop, cursor), leave)
        rows += cursor.fetchall()
        cursor.close()
        assert [row[0] for row in rows] == list(range(1, 501))


def drop(cursor: SSCursor) -> None:
    try:
        cursor.execute("SELECT 1")
    except MySQLdb.Error:
        pass
    else:
        raise AssertionError("a cursor of the parent's was used")
    del cursor
    gc.collect()


@contextmanager
def state_of_thread(name: str) -> Iterator[int]:
    """Another thread has a connection."""
    ready, done, seen = threading.Event(), threading.Event(), []

    def hold() -> None:
        with state(name) as before:
            seen.append(before)
            ready.set()
            done.wait()
        seen.append(before)
        connection.close()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    ready.wait()
    ignore_warning_of_threads()
    yield seen[0]
    done.set()
    thread.join()
    assert len(seen) == 2


def other_thread(name: str) -> None:
    """A fork in one thread while another has a connection."""
    with state_of_thread(name) as before:
        for leave in LEAVE:
            run_child(partial(be_clean, before, use=True), leave)


@contextmanager
def statement_running() -> Iterator[None]:
    """Another thread is in the middle of a statement: it waits for a lock that this one has."""
    with connection.cursor() as cursor:
        lock = f"forks {own_id()}"
        cursor.execute("SELECT GET_LOCK(%s, 60)", [lock])
        cursor.fetchall()

        def wait_for_lock() -> None:
            with connection.cursor() as waiting:
                waiting.execute("SELECT GET_LOCK(%s, 60)", [lock])
                assert waiting.fetchone() == (1,)
            connection.close()

        thread = threading.Thread(target=wait_for_lock, daemon=True)
        thread.start()
        found = 0
        while not found:
            cursor.execute(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info LIKE %s",
                [f"SELECT GET_LOCK('{lock}%"],
            )
            (found,) = cursor.fetchone()
        yield
        cursor.execute("SELECT RELEASE_LOCK(%s)", [lock])
        cursor.fetchall()
        thread.join()


def running() -> None:
    """A fork while another thread is in the middle of a statement."""
    ignore_warning_of_threads()
    before = own_id()
    with statement_running():
        for leave in LEAVE:
            run_child(partial(be_clean, before, use=True), leave)
    assert own_id() == before
    (status,) = pool_status().values()
    assert (status["out"], status["idle"]) == (1, 1)


def ignore_warning_of_threads() -> None:
    """Python's own; it is due where a program with threads forks."""
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def churn() -> None:
    """200 forks while 8 threads check out and in, and wait for each other."""
    done, errors, ids = threading.Event(), [], set()

    def work() -> None:
        try:
            while not done.is_set():
                ids.add(own_id())
                with transaction.atomic():
                    ids.add(own_id())
                connection.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    ignore_warning_of_threads()
    for number in range(200):
        if number % 20:
            run_child(assert_nothing_inherited)
        else:
            run_child(partial(be_clean, 0, use=True), list(LEAVE)[number // 20 % 3])
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    (status,) = pool_status().values()
    assert 1 < len(ids) <= status["cap"]
    assert status["out"] == 0


def connecting() -> None:
    """A fork while another thread waits for a server's first word."""
    ignore_warning_of_threads()
    # (The hook that was registered last is the first to be called.)
    os.register_at_fork(before=partial(os.write, 1, b"forking\n"))
    thread = threading.Thread(target=own_id)
    thread.start()
    assert sys.stdin.readline() == "fork\n"
    port = connection.settings_dict["PORT"]
    pid = fork(partial(have_no_socket_to, port))
    thread.join()
    assert wait(pid) == CODES["_exit"]


def have_no_socket_to(port: int) -> None:
    peers = [peer_of(int(entry.name)) for entry in Path("/proc/self/fd").iterdir()]
    assert f"127.0.0.1:{port}" not in peers, peers
    be_clean(0, use=True)


def functions(thread: int) -> Iterator[str]:
    """The names of the functions that a thread is in."""
    frame = sys._current_frames()[thread]
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]


def locked() -> None:
    """A fork waits for a thread that has a pool's lock; the child has no use for the lock."""
    before = own_id()
    (pool,) = registry.pools()
    lock, main, held = pool.source.lock, threading.main_thread().ident, threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            while "wait_for_end" not in functions(main):
                pass

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        ignore_warning_of_threads()
        pid = fork(partial(use_orm, before))
    thread.join()
    assert wait(pid) == CODES["_exit"]


def by_multiprocessing(method: str) -> None:
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["tests.forks.preloaded"])
    with state("transaction") as before:
        for _ in range(2):
            process = context.Process(target=be_clean, args=(before,), kwargs={"use": True})
            process.start()
            process.join()
            assert process.exitcode == 0


def programs() -> None:
    """Programs that are started, by whatever call, have none of the sockets."""
    with state("held") as before:
        (number,) = descriptors()
        command = ["/usr/bin/test", "!", "-e", f"/proc/self/fd/{number}"]
        subprocess.run(command, check=True)
        subprocess.run(command, check=True, close_fds=False)
        subprocess.run(command, check=True, preexec_fn=partial(be_clean, before, use=False))
        assert wait(os.posix_spawn(command[0], command, os.environ)) == 0
        assert own_id() == before


def stock() -> None:
    """A connection of Django's own engine, beside a pooled one, is the child's to leave alone, as it is without us."""
    entry = {**connections.settings["default"], "ENGINE": "django.db.backends.mysql"}
    entry["OPTIONS"] = {key: value for key, value in entry["OPTIONS"].items() if key != "pool"}
    connections.settings["stock"] = entry
    of_stock = own_id("stock")
    with state("held") as before:
        driver = connections["stock"].connection
        run_child(partial(find_stock, before, driver))
        assert own_id("stock") == of_stock


def find_stock(of_parent: int, driver: object) -> None:
    be_clean(of_parent, use=True)
    assert connections["stock"].connection is driver
    with socket.socket(fileno=os.dup(driver_for(MySQLdb).descriptor(driver))) as inherited:
        assert inherited.getpeername()[1] == connections["stock"].settings_dict["PORT"]


def daemon(name: str) -> None:
    """The case of 2013: a daemon closes all descriptors, and another server's socket gets the number of a connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if name == "thread":
            before = stack.enter_context(state_of_thread("held"))
        else:
            before = stack.enter_context(state("held" if name == "unread" else name))
        if name == "unread":
            connection.ensure_connection()
            cursor = connection.connection.cursor(SSCursor)
            cursor.execute(MANY_ROWS)
            stack.callback(cursor.close)
        numbers = descriptors()
        for leave in LEAVE:
            run_child(partial(become_daemon, numbers, listener.getsockname(), before, CODES[leave]), leave)
            for _ in numbers:
                with listener.accept()[0] as peer:
                    assert peer.recv(1000) == b"daemon"
                    assert peer.recv(1000) == b"", "a socket that is none of the database's was sent something"


def become_daemon(numbers: list[int], address: tuple[str, int], of_parent: int, code: int) -> None:
    os.setsid()
    if os.fork():
        os._exit(code)
    signal.alarm(60)
    os.closerange(0, 1024)
    sockets = [socket.socket()]
    while sockets[-1].fileno() < max(numbers):
        sockets.append(socket.socket())
    for number in numbers:
        sockets[number].connect(address)
    be_clean(of_parent, use=True)
    for number in numbers:
        sockets[number].sendall(b"daemon")  # all that its peer may receive
    for taken in sockets:
        taken.detach()  # open until the process has ended
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


def orphans(name: str, count: str) -> None:
    """A parent that is killed; its children live for as long as the test wants, and hold none of its sessions."""
    ignore_warning_of_threads()
    if name == "connecting":
        for _ in range(8):
            threading.Thread(target=connect_for_ever, daemon=True).start()
        run_orphans(int(count))
    with statement_running() if name == "statement" else state(name):
        run_orphans(int(count))


def run_orphans(count: int) -> None:
    for _ in range(count):
        fork(sys.stdin.read)
    os.write(1, b"forked\n")
    os.kill(os.getpid(), signal.SIGKILL)


def connect_for_ever() -> None:
    while True:
        own_id()
        close_pool()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments)
