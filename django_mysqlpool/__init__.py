"""The connection pool that Django lacks for MySQL and MariaDB.

In the settings: ``ENGINE = "django_mysqlpool.backends.mysqlpool"`` and, first in ``MIDDLEWARE``,
``"django_mysqlpool.middleware.ConnectionReleaseMiddleware"``.
"""

from .mysqlpool.errors import PoolTimeout, PreviousStatementLost
from .mysqlpool.registry import close_pool, pool_status
from .mysqlpool.transactions import hold_connection
from .threading_utils import PooledThreadPoolExecutor, auto_close_db

__all__ = [
    "PoolTimeout",
    "PooledThreadPoolExecutor",
    "PreviousStatementLost",
    "auto_close_db",
    "close_pool",
    "hold_connection",
    "pool_status",
]

__version__ = "1.0.0a1"
