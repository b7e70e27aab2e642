"""What ends a piece of work: ``auto_close_db`` for a call or a block, ``PooledThreadPoolExecutor`` for threads."""

from .asgi import PooledExecutorASGI
from .decorator import auto_close_db
from .executor import PooledThreadPoolExecutor

__all__ = ["PooledExecutorASGI", "PooledThreadPoolExecutor", "auto_close_db"]
