"""The connection pool that Django lacks for MySQL and MariaDB.

To use it, set ``ENGINE = "django_mysqlpool.backends.mysqlpool"`` and put
``"django_mysqlpool.middleware.ConnectionReleaseMiddleware"`` first into ``MIDDLEWARE``. Importing this package opens no
connection, starts no thread and needs no settings; it registers the system checks.
"""

from . import checks  # noqa: F401  (importing registers them)
from .mysqlpool.backend.holding import hold_connection
from .mysqlpool.backend.pools import close_pool, drain_pool, pool_statistics, pool_status, resize_pool
from .mysqlpool.errors import PoolTimeout, PreviousStatementLost
from .threading_utils import PooledThreadPoolExecutor, auto_close_db

__all__ = [
    "PoolTimeout",
    "PooledThreadPoolExecutor",
    "PreviousStatementLost",
    "auto_close_db",
    "close_pool",
    "drain_pool",
    "hold_connection",
    "pool_statistics",
    "pool_status",
    "resize_pool",
]

__version__ = "1.0.0a1"
