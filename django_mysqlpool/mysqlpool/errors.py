"""What goes wrong with a pool, in the exceptions that Django's users catch."""

from django.db import OperationalError


class PoolTimeout(OperationalError):
    """No connection could be had within the pool's ``timeout``, or ``max_waiting`` were waiting already.

    The message names the alias, the cap, who holds the connections, and what to change.
    """
