"""Utilities that return connections at the end of a unit of work, for threads, tasks and executors."""

from .asgi import PooledExecutorASGI
from .decorator import auto_close_db
from .executor import PooledThreadPoolExecutor

__all__ = ["PooledExecutorASGI", "PooledThreadPoolExecutor", "auto_close_db"]
