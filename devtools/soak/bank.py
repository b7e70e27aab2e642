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
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import uuid4

from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.db.backends.utils import CursorWrapper

from devtools.soak.ledger import ACCOUNTS
from devtools.soak.records import ACKNOWLEDGED, FAILED, UNKNOWN, VIOLATION, Recorder
from django_mysqlpool.middleware import ConnectionReleaseWSGI

#: Seconds between two transfers of a thread, at most, and after one that failed.
LONGEST_PAUSE, PAUSE_AFTER_ERROR = 0.01, 0.1

Transfer = Callable[[], None]


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

    def transfer(self) -> None:
        """One transfer, as an application makes it, whose caller gives the connection back; at times more around it."""
        if self.chance.random() < 0.1:
            self.note()
        number = uuid4().hex
        trace = None
        with self._recorded(number) as fate, transaction.atomic():
            trace = self.move(number)
            fate.is_open = True
        if fate.is_good and (trace or self.chance.random() < 0.1):
            self.look(number, trace)

    def note(self) -> None:
        """One statement outside a transaction, which commits itself wherever it is sent: a transfer of nothing."""
        number = uuid4().hex
        with self._recorded(number) as fate, connection.cursor() as cursor:
            fate.is_open = True
            cursor.execute("INSERT INTO journal VALUES (%s, 0, 0, 0)", [number])

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
    def _recorded(self, number: str) -> Iterator[Fate]:
        """Tell what becomes of a transfer in the block, which says from where on that is open."""
        fate = Fate()
        try:
            yield fate
        except (OperationalError, InterfaceError) as error:
            self.record(UNKNOWN if fate.is_open else FAILED, number, kind_of(error))
            time.sleep(PAUSE_AFTER_ERROR)
        except BaseException:
            self.record(UNKNOWN if fate.is_open else FAILED, number, "an error that must not be")
            self.record(VIOLATION, f"{threading.current_thread().name}: {traceback.format_exc()}")
        else:
            fate.is_good = True
            self.record(ACKNOWLEDGED, number)

    def move(self, number: str) -> str | None:
        """The statements of one transfer; now and then with one that leaves something in the session, which is told."""
        amount = self.chance.randint(1, 100)
        source, target = self.chance.sample(range(ACCOUNTS), 2)
        with connection.cursor() as cursor:
            trace = self._leave_a_trace(cursor) if self.chance.random() < 0.1 else None
            for account, change in sorted(((source, -amount), (target, amount))):
                cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [change, account])
            cursor.execute("INSERT INTO journal VALUES (%s, %s, %s, %s)", [number, source, target, amount])
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


# The ways in which a thread may use its connection: each makes one transfer, and gives back.


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
    """In a request, whose end gives back."""

    def application(*_: object) -> Iterator[bytes]:
        transfer()
        yield b""

    response: Any = ConnectionReleaseWSGI(application)({}, print)
    try:
        list(response)
    finally:
        response.close()


def kind_of(error: Exception) -> str:
    """An error's class and number."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else ""
    return f"{type(error).__name__} {number}".rstrip()
