"""What goes wrong with a pool, in the exceptions that Django's users catch."""

from django.db import OperationalError, ProgrammingError


class PoolTimeout(OperationalError):
    """No connection could be had within the pool's ``timeout``, or ``max_waiting`` were waiting already.

    The message names the alias, the cap, who holds the connections, and what to change.
    """


class PreviousStatementLost(ProgrammingError):
    """A statement asks about an earlier one (``LAST_INSERT_ID()``, ``SHOW WARNINGS``) and would be told of somebody else's.

    Only where ``release`` is ``"transaction"``. Nothing was sent.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"Alias '{alias}': this statement asks about the one before it, and the session would answer for somebody "
            "else's: it went back to the pool in between (release = 'transaction'), or there was no INSERT of yours that "
            "the server numbered. Put both in one transaction.atomic(), or in django_mysqlpool.hold_connection(); for the "
            "id of an INSERT, cursor.lastrowid needs neither."
        )
