"""GeoDjango's MySQL backend, pooled: what ``ENGINE = "django_mysqlpool.backends.mysqlpool_gis"`` loads."""

from django.contrib.gis.db.backends.mysql import base

from django_mysqlpool.mysqlpool.wrapper import PooledDatabaseMixin


class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
    """GeoDjango's MySQL ``DatabaseWrapper``, which checks its connections out of a pool."""
