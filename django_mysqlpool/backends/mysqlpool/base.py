"""Django's MySQL backend, pooled: what ``ENGINE = "django_mysqlpool.backends.mysqlpool"`` loads."""

from django.db.backends.mysql import base

from django_mysqlpool.mysqlpool.wrapper import PooledDatabaseMixin


class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
    """Django's MySQL ``DatabaseWrapper``, which checks its connections out of a pool."""
