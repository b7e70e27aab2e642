"""The transfers, and the ways in which a site's threads may use their connections for them.

Imported once Django is set up.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
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


class Bank:
    """Makes transfers and records what became of each."""

    def __init__(self, recorder: Recorder, chance: Random) -> None:
        self.record = recorder.record
        self.chance = chance

    def transfer(self) -> None:
        """One transfer, as an application makes it, whose caller gives the connection back."""
        number = uuid4().hex
        commits = False
        try:
            with transaction.atomic():
                self.move(number)
                commits = True
        except (OperationalError, InterfaceError) as error:
            self.record(UNKNOWN if commits else FAILED, number, kind_of(error))
            time.sleep(PAUSE_AFTER_ERROR)
        except BaseException:
            self.record(UNKNOWN if commits else FAILED, number, "an error that must not be")
            self.record(VIOLATION, f"{threading.current_thread().name}: {traceback.format_exc()}")
        else:
            self.record(ACKNOWLEDGED, number)

    def move(self, number: str) -> None:
        """The statements of one transfer; now and then with one that leaves something in the session."""
        amount = self.chance.randint(1, 100)
        source, target = self.chance.sample(range(ACCOUNTS), 2)
        with connection.cursor() as cursor:
            if self.chance.random() < 0.1:
                self._leave_a_trace(cursor)
            for account, change in sorted(((source, -amount), (target, amount))):
                cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [change, account])
            cursor.execute("INSERT INTO journal VALUES (%s, %s, %s, %s)", [number, source, target, amount])

    def _leave_a_trace(self, cursor: CursorWrapper) -> None:
        me = f"{os.getpid()} {threading.current_thread().name}"
        cursor.execute("SELECT @soak")
        found = cursor.fetchone()[0]
        if found not in (None, me):
            self.record(VIOLATION, f"{me} was lent a session with a variable of {found}'s")
        cursor.execute("SET @soak = %s", [me])

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
