"""The transfers, and the ways in which a site's threads may use their connections for them.

Imported once Django is set up.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, TypeVar
from uuid import uuid4

from django.db import InterfaceError, OperationalError, ProgrammingError, connection, connections, transaction
from django.db.backends.utils import CursorWrapper

from devtools.soak.interrupts import INTERRUPTS, interrupt_behind
from devtools.soak.ledger import ACCOUNTS, LARGEST_PACKET
from devtools.soak.records import ACKNOWLEDGED, DONE, FAILED, UNKNOWN, VIOLATION, Recorder
from django_mysqlpool import auto_close_db
from django_mysqlpool.middleware import ConnectionReleaseWSGI

#: Seconds between two transfers of a thread, at most, and after one that failed.
LONGEST_PAUSE, PAUSE_AFTER_ERROR = 0.01, 0.1

Transfer = Callable[[], None]
T = TypeVar("T")
#: Has somebody else do a part of a transfer.
By = Callable[[Callable[[], Any]], Any]


def by_itself(part: Callable[[], T]) -> T:
    """Not by somebody else."""
    return part()


class Sharer(threading.Thread):
    """A thread that shares the wrapper of the one that makes it, does a part of its work, and ends."""

    def __init__(self, part: Callable[[], object]) -> None:
        # Of the same name: the two are one holder, for what one finds in its session.
        super().__init__(name=threading.current_thread().name)
        self._wrapper = connections["default"]
        self._run: Callable[..., Any] = copy_context().run if Random().random() < 0.5 else by_itself
        self._part = part
        self._answer: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        connections["default"] = self._wrapper
        try:
            self._answer = self._run(self._part)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What the part returned, or raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._answer


def by_sharer(part: Callable[[], T]) -> T:
    """By a thread that shares this one's wrapper, and ends."""
    return Sharer(part).result()  # type: ignore[no-any-return]


@dataclass
class Fate:
    """What is known of a transfer: an error leaves it open whether it was applied, or its commit returned."""

    is_open: bool = False
    is_good: bool = False


class Bank:
    """Makes transfers and records what became of each."""

    def __init__(self, recorder: Recorder, chance: Random) -> None:
        self.record = recorder.record
        self.chance = chance

    def transfer(self, by: By = by_itself) -> None:
        """One transfer, as an application makes it, whose caller gives the connection back; at times more around it."""
        if self.chance.random() < 0.1:
            self.note()
        if self.chance.random() < 0.005:
            self.exceed(by)
        number = uuid4().hex
        trace = None
        with self._recorded(number) as fate, atomic(by):
            trace = by(lambda: self.move(number))
            fate.is_open = True
        if fate.is_good and (trace or self.chance.random() < 0.1):
            self.look(number, trace)

    def note(self, *errors: type[Exception]) -> None:
        """One statement outside a transaction, which commits itself wherever it is sent: a transfer of nothing.

        ``errors`` are those that it may have besides the usual ones.
        """
        number = uuid4().hex
        with self._recorded(number, *errors) as fate, connection.cursor() as cursor:
            fate.is_open = True
            cursor.execute("INSERT INTO journal VALUES (%s, 0, 0, 0)", [number])

    def exceed(self, by: By = by_itself) -> None:
        """A statement longer than the server takes, alone or amid a transfer that goes on after it: neither is applied."""
        number = uuid4().hex
        self.record(DONE, "statement too long for the server (1153)")
        with self._recorded(number) as fate:
            if self.chance.random() < 0.5:
                self._exceed(number)
            else:
                with atomic(by):
                    by(lambda: self.move(number, amid=lambda: self._exceed(number)))
        if fate.is_good:
            self.record(VIOLATION, f"{threading.current_thread().name} has heard of no error in {number}")

    def _exceed(self, number: str) -> None:
        padding = "x" * (LARGEST_PACKET + self.chance.randint(0, LARGEST_PACKET))
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO journal VALUES (%s, 0, 0, 0) /* {padding} */", [number])

    def look(self, number: str, trace: str | None) -> None:
        """Outside a transaction, see what was committed and what was left in the session, or be told that it is gone."""
        me = threading.current_thread().name
        with suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM journal WHERE id = %s", [number])
            if cursor.fetchone() != (1,):
                self.record(VIOLATION, f"{me} does not see its transfer {number}: an old transaction was open")
            if trace:
                cursor.execute("SELECT @soak")
                if (found := cursor.fetchone()[0]) != trace:
                    self.record(VIOLATION, f"{me} left {trace} in its session and finds {found}, without an error")

    @contextmanager
    def _recorded(self, number: str, *errors: type[Exception]) -> Iterator[Fate]:
        """Tell what becomes of a transfer in the block, which says from where on that is open.

        An interrupt may come between any two lines; so it is told first that nothing is known.
        """
        fate = Fate()
        expected: tuple[type[Exception], ...] = (OperationalError, InterfaceError, *errors)
        self.record(UNKNOWN, number)
        try:
            yield fate
        except GeneratorExit:  # an interrupt on the way here
            raise
        except INTERRUPTS as error:
            self.record(UNKNOWN if fate.is_open else FAILED, number, type(error).__name__)
            raise
        except expected as error:
            self.record(UNKNOWN if fate.is_open else FAILED, number, kind_of(error))
            time.sleep(PAUSE_AFTER_ERROR)
            if (interrupt := interrupt_behind(error)) is not None:
                raise interrupt from error
        except BaseException:
            self.record(UNKNOWN if fate.is_open else FAILED, number, "an error that must not be")
            self.record(VIOLATION, f"{threading.current_thread().name}: {traceback.format_exc()}")
        else:
            fate.is_good = True
            self.record(ACKNOWLEDGED, number)

    def move(self, number: str, amid: Callable[[], None] | None = None) -> str | None:
        """The statements of one transfer; now and then with one that leaves something in the session, which is told.

        An error of what is done ``amid`` them is passed over, as by an application that should not.
        """
        amount = self.chance.randint(1, 100)
        source, target = self.chance.sample(range(ACCOUNTS), 2)
        with connection.cursor() as cursor:
            trace = self._leave_a_trace(cursor) if self.chance.random() < 0.1 else None
            for account, change in sorted(((source, -amount), (target, amount))):
                cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [change, account])
                if amid is not None:
                    with suppress(OperationalError):
                        amid()
            cursor.execute("INSERT INTO journal VALUES (%s, %s, %s, %s)", [number, source, target, amount])
            if connection.get_autocommit():
                self.record(VIOLATION, f"{threading.current_thread().name} was put out of its transaction {number}")
        return trace

    def _leave_a_trace(self, cursor: CursorWrapper) -> str:
        me = f"{os.getpid()} {threading.current_thread().name}"
        cursor.execute("SELECT @soak")
        found = cursor.fetchone()[0]
        if found not in (None, me):
            self.record(VIOLATION, f"{me} was lent a session with a variable of {found}'s")
        cursor.execute("SET @soak = %s", [me])
        return me

    def begin_and_die(self, keep: Callable[[object], None]) -> None:
        """What a thread does that ends in the middle of its transfer; ``keep`` may keep its wrapper from the collector."""
        number = uuid4().hex
        self.record(FAILED, number, "(its thread ended)")
        with suppress(OperationalError, InterfaceError):
            if self.chance.random() < 0.5:
                transaction.atomic().__enter__()
            else:
                transaction.set_autocommit(False)
            self.move(number)
        if self.chance.random() < 0.5:
            keep(connections["default"])


class atomic(transaction.Atomic):  # noqa: N801
    """``transaction.atomic()``, begun and ended by somebody else."""

    def __init__(self, by: By) -> None:
        super().__init__(using=None, savepoint=True, durable=False)
        self._by = by

    def __enter__(self) -> None:
        self._by(super().__enter__)

    def __exit__(self, *error: object) -> None:
        leave: Callable[..., None] = super().__exit__
        self._by(lambda: leave(*error))


# The ways in which a thread may use its connection: each makes one transfer, and returns.


def closing(transfer: Transfer) -> None:
    """By Django's own means."""
    try:
        transfer()
    finally:
        connection.close()


def holding(transfer: Transfer) -> None:
    """A few transfers, with nothing done in between for a moment."""
    for _ in range(10):
        transfer()
        time.sleep(LONGEST_PAUSE)
    connection.close()


def requesting(transfer: Transfer) -> None:
    """In a request, whose end returns."""

    def application(*_: object) -> Iterator[bytes]:
        transfer()
        yield b""

    response: Any = ConnectionReleaseWSGI(application)({}, print)
    try:
        list(response)
    finally:
        response.close()


def sharing(bank: Bank) -> None:
    """Through a wrapper that threads share, one after the other, or with single statements at once; not always returned.

    So do the threads of Django's live server, and code that hands ``connections[alias]`` to a thread.
    """
    shared = connections["default"]
    if not shared.allow_thread_sharing:
        shared.inc_thread_sharing()
    bank.record(DONE, "wrapper shared by threads")

    def by_any(part: Callable[[], T]) -> T:
        return bank.chance.choice((by_itself, by_sharer))(part)

    unit: Callable[[], object] = bank.chance.choice(
        (
            lambda: bank.transfer(by_sharer),
            lambda: bank.transfer(by_any),
            lambda: by_sharer(bank.transfer),
            lambda: note_at_once(bank),
        )
    )
    (auto_close_db(unit) if bank.chance.random() < 0.5 else unit)()
    if bank.chance.random() < 0.5:
        bank.chance.choice((by_itself, by_sharer))(connection.close)


def note_at_once(bank: Bank) -> None:
    """Two threads and this one, each with a statement of its own through the wrapper that they share.

    One may find that the connection has died, and replace it, while another has a cursor: that one is closed.
    """
    sharers = [Sharer(partial(bank.note, ProgrammingError)) for _ in range(2)]
    bank.note(ProgrammingError)
    for sharer in sharers:
        sharer.result()


def kind_of(error: Exception) -> str:
    """An error's class and number."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else ""
    return f"{type(error).__name__} {number}".rstrip()
