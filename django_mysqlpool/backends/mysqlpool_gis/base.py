"""``ENGINE = "django_mysqlpool.backends.mysqlpool_gis"``: GeoDjango's MySQL backend, pooled."""

from django.contrib.gis.db.backends.mysql import base

from django_mysqlpool import checks  # noqa: F401  (importing registers them)
from django_mysqlpool.mysqlpool.wrapper import PooledDatabaseMixin


class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
    """GeoDjango's MySQL ``DatabaseWrapper`` on a pool of SQLAlchemy's."""
