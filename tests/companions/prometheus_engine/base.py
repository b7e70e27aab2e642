from django_prometheus.db.backends.mysql import base

from django_mysqlpool.mysqlpool.backend.wrapper import PooledDatabaseMixin


class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper): ...
