"""``ENGINE = "django_mysqlpool.backends.mysqlpool"``: Django's MySQL backend, pooled."""

from django.db.backends.mysql import base

from django_mysqlpool import checks  # noqa: F401  (importing registers them)
from django_mysqlpool.mysqlpool.wrapper import PooledDatabaseMixin


class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
    """Django's MySQL ``DatabaseWrapper`` on a pool of SQLAlchemy's."""
