"""What ends a piece of work: ``auto_close_db`` for a function, ``PooledThreadPoolExecutor`` for threads."""

from .decorator import auto_close_db
from .executor import PooledThreadPoolExecutor

__all__ = ["PooledThreadPoolExecutor", "auto_close_db"]
