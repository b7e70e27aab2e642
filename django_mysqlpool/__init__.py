"""The connection pool that Django lacks for MySQL and MariaDB.

In the settings: ``ENGINE = "django_mysqlpool.backends.mysqlpool"`` and, first in ``MIDDLEWARE``,
``"django_mysqlpool.middleware.ConnectionReleaseMiddleware"``.
"""

from .mysqlpool.errors import PoolTimeout
from .mysqlpool.registry import close_pool, pool_status
from .threading_utils import PooledThreadPoolExecutor, auto_close_db

__all__ = ["PoolTimeout", "PooledThreadPoolExecutor", "auto_close_db", "close_pool", "pool_status"]

__version__ = "1.0.0a1"
