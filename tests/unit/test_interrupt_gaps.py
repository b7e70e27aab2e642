"""No exception of a signal's handler passes by a ``with`` or ``try`` block of the package: see ``pool/locks.py``."""

from __future__ import annotations

import dis
import re
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import django_mysqlpool
from django_mysqlpool.mysqlpool.drivers.sockets import Socket, peer_of
from django_mysqlpool.mysqlpool.pool.closing import Farewell
from django_mysqlpool.mysqlpool.pool.locks import GuardedRLock, RLock, acquire_if_free, acquire_within

pytestmark = pytest.mark.unit

PACKAGE = Path(django_mysqlpool.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
#: A lock is acquired by its method only here: where nobody releases it, or where a fork's hook does.
ACQUIRES = {"backend/threads.py", "pool/locks.py", "pool/registry.py", "pool/waiters.py"}


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


def loops_beside_their_block(code: types.CodeType) -> Iterator[str]:
    """The loops that go on after a condition by a jump which the block around them does not cover."""
    table = dis._parse_exception_table(code)
    instructions = [step for step in dis.get_instructions(code) if step.opname not in {"CACHE", "EXTENDED_ARG"}]
    by_offset = {step.offset: step for step in instructions}

    def blocks_around(offset: int) -> list[int]:
        handlers: list[int] = []
        while True:
            handler = next((entry.target for entry in table if entry.start <= offset < entry.end), None)
            if handler is None or handler in handlers:
                return handlers
            handlers.append(handler)
            offset = handler

    conditions = ("TO_BOOL", "NOT_TAKEN", "NOP")
    for number, step in enumerate(instructions):
        if step.opname == "JUMP_BACKWARD" and "JUMP_IF" in instructions[number - 1].opname:
            before = next(
                other
                for other in reversed(instructions[:number])
                if "JUMP_IF" not in other.opname and other.opname not in conditions
            )
            around = blocks_around(before.offset)
            if not blocks_around(step.offset) and any(by_offset[at].opname == "PUSH_EXC_INFO" for at in around):
                yield f"{code.co_qualname}, line {before.positions.lineno}"


def gaps_in(source: str) -> list[str]:
    return [gap for code in code_objects(compile(source, "source", "exec")) for gap in loops_beside_their_block(code)]


LOOP = """
def hold(lock, items):
    with lock:
        return [item for item in items if item]
"""


@pytest.mark.skipif(not (3, 12) <= sys.version_info < (3, 14), reason="Python 3.12 and 3.13 compile such loops so")
class TestLoops:
    def test_a_gap_is_found(self):
        assert len(gaps_in(LOOP)) == 1

    @pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_none_stands_in_a_block(self, path):
        assert gaps_in(path.read_text()) == []


def test_locks_are_acquired_without_a_gap():
    """By ``with``, or by the functions of ``pool/locks.py``."""
    found = {path for path in SOURCES if re.search(r"(lock|use|bell)\.acquire\(|methodcaller\(.acquire", path.read_text())}
    assert {str(path.relative_to(PACKAGE / "mysqlpool")) for path in found} == ACQUIRES


def test_locks_for_with_blocks_are_of_the_packages_class():
    """Others are waiters' bells, which are acquired by their method only, and a condition on such a lock."""
    made = re.compile(r"threading\.(\w*Lock|Condition|\w*Semaphore)\(")
    found = {(str(path.relative_to(PACKAGE)), *made.findall(path.read_text())) for path in SOURCES}
    assert {entry for entry in found if len(entry) > 1} == {
        ("mysqlpool/compat.py", "RLock"),  # looks for a private name of it
        ("mysqlpool/pool/fork.py", "Condition"),
        ("mysqlpool/pool/locks.py", "RLock", "RLock"),  # the base class, and what ``RLock()`` returns
        ("mysqlpool/pool/waiters.py", "Lock"),
    }


def test_a_lock_is_of_the_class_that_stands_in_threading_now(monkeypatch):
    """gevent may put its own there when this package has been imported, under ``gunicorn --preload`` for instance."""

    class Cooperative:
        pass

    monkeypatch.setattr(threading, "RLock", Cooperative)
    assert type(RLock()) is Cooperative


class Interrupt(BaseException):
    pass


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], None]]:
    """Has a signal's handler raise an ``Interrupt`` after so many seconds.

    Once: another one would strike outside of the block.
    """

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield partial(signal.setitimer, signal.ITIMER_REAL)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [RLock, GuardedRLock])
def test_a_handlers_exception_leaves_no_lock_locked(make, interrupt_after):
    """Wherever it strikes: there is hardly anything but the lock here."""
    for _ in range(300):
        lock = make()
        try:
            interrupt_after(0.000_3)
            while True:
                with lock:
                    pass
        except Interrupt:
            pass
        assert "count=0" in repr(lock)


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


class TestDescriptors:
    """A handler's exception loses none, wherever it strikes."""

    def test_of_a_look_at_the_address(self, interrupt_after):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            before = open_descriptors()
            for _ in range(300):
                try:
                    interrupt_after(0.000_3)
                    while True:
                        peer_of(client.fileno())
                except Interrupt:  # noqa: PERF203
                    pass
            assert open_descriptors() == before

    def test_of_a_close(self, interrupt_after):
        """The connection is one end of a pair, and the server at the other end has left."""
        before = open_descriptors()
        driver = SimpleNamespace(close=socket.socket.close)
        for number in range(3_000):
            connection, server = socket.socketpair()
            server.close()
            session = SimpleNamespace(
                detach=lambda found=connection: found, socket=Socket(connection.fileno()), driver=driver
            )
            try:
                interrupt_after((number % 60 + 1) / 1e6)
                Farewell().close(session)  # type: ignore[arg-type]
                # Not a loop of bytecodes alone: Python 3.11 may miss a signal that comes as a thread gets the GIL back, and
                # notices it the next time.
                while True:
                    time.sleep(0)
            except Interrupt:
                pass
            connection.close()
        assert open_descriptors() == before


def test_nothing_is_undone_by_a_generator():
    """One that an interrupt drops on its way out goes on when it is collected: late, in any thread, or never.

    ``hold_connection`` only counts.
    """
    found = {path for path in SOURCES if re.search(r"@(async)?contextmanager", path.read_text())}
    assert {str(path.relative_to(PACKAGE)) for path in found} == {"mysqlpool/backend/holding.py"}


class Elsewhere(threading.Thread):
    """Holds a lock in another thread."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock
        self._holds, self._enough = threading.Event(), threading.Event()

    def run(self) -> None:
        with self._lock:
            self._holds.set()
            self._enough.wait()

    def __enter__(self) -> None:
        self.start()
        self._holds.wait()

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()


@pytest.mark.parametrize("acquire", [acquire_if_free, lambda *given: acquire_within(0.01, *given)])
class TestAcquire:
    def test_a_free_one(self, acquire):
        lock, held = threading.RLock(), []
        assert acquire(lock, held)
        assert held == [lock]

    def test_one_that_another_thread_holds(self, acquire):
        lock, held = threading.RLock(), []
        with Elsewhere(lock):
            assert not acquire(lock, held)
        assert not held

    def test_an_interrupt_of_any_step_leaves_it_in_the_list(self, acquire):
        """The trace function raises at each line, call and return of it, one after the other."""
        for number in range(1, 20):
            lock, held, steps = threading.RLock(), [], 0

            def interrupt(frame, event, argument, number=number):
                nonlocal steps
                steps += 1
                if steps == number:
                    raise KeyboardInterrupt
                return interrupt

            before = sys.gettrace()
            sys.settrace(interrupt)
            try:
                acquire(lock, held)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            holds = "count=1" in repr(lock)
            assert held == [lock] * holds
        assert holds
