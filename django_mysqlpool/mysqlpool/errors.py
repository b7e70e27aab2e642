"""The pool's own exceptions. They are subclasses of Django's, so that code which catches Django's catches them.

They can be copied, pickled, and made again from their ``args``, as Celery does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TypeVar

from django.db import OperationalError, ProgrammingError

_WHOLE_MESSAGE = re.compile(r"Alias '(.*?)': this statement asks")
E = TypeVar("E", bound=BaseException)


class PoolTimeout(OperationalError):
    """No connection came free within the pool's ``timeout``, or ``max_waiting`` threads were waiting already.

    The message names the alias, the cap, the holders and what to change. The attributes have the same facts, as they were
    when the error was raised. An exception that was made from its message alone has ``None`` for them, and no holders.

    :ivar str | None alias: the database alias
    :ivar int | None cap: the most connections that the pool may have open in this process; ``None``: no limit
    :ivar int | None out: the number of connections that were out
    :ivar int | None idle: the number of idle connections
    :ivar int | None opening: the number of connections that were being opened
    :ivar int | None waiting: the number of threads that were waiting
    :ivar tuple[str, ...] holders: a text for each holder, the longest first: thread, seconds, request or work, and the
        first word of its last statement
    """

    def __init__(
        self,
        *args: object,
        alias: str | None = None,
        cap: int | None = None,
        out: int | None = None,
        idle: int | None = None,
        opening: int | None = None,
        waiting: int | None = None,
        holders: Sequence[str] = (),
    ) -> None:
        super().__init__(*args)
        self.alias = alias
        self.cap = cap
        self.out = out
        self.idle = idle
        self.opening = opening
        self.waiting = waiting
        self.holders = tuple(holders)


class PreviousStatementLost(ProgrammingError):
    """A statement asks about an earlier one (``LAST_INSERT_ID()``, ``SHOW WARNINGS``) that ran in another session.

    The answer would have been about a statement of another holder, so the statement was not sent. This is only raised with
    ``release = "transaction"``. Put both statements into one ``transaction.atomic()``, or into
    :func:`~django_mysqlpool.hold_connection`. If the session was asked first and refused to answer, the server's error is
    the ``__cause__``.

    :ivar str alias: the database alias
    """

    def __init__(self, alias: str, message: str | None = None) -> None:
        whole = _WHOLE_MESSAGE.match(alias)
        if whole:  # made from its message alone, as some stores of results do
            alias, message = whole[1], alias
        super().__init__(
            alias,
            message
            or f"Alias '{alias}': this statement asks about the one before it, and the session would answer for somebody "
            "else's: it went back to the pool in between (release = 'transaction'), or there was no INSERT of yours that "
            "the server numbered. Put both in one transaction.atomic(), or in django_mysqlpool.hold_connection(); for the "
            "id of an INSERT, cursor.lastrowid needs neither.",
        )
        self.alias = alias

    def __str__(self) -> str:
        return str(self.args[-1]) if self.args else ""


#: The methods of a user's class may raise these, if it was not made for this. An interrupt is none of them.
OF_USERS_CLASSES = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError)


def copy_of(error: E) -> E:
    """Return a copy of an error without its traceback, or the error itself if its class can't be copied."""
    try:
        copied = copy.copy(error)
        return copied if type(copied) is type(error) and copied.args == error.args else error
    except OF_USERS_CLASSES:
        return error
