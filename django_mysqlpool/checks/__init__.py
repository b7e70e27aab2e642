"""Django's system checks for pooled aliases, and for those that were meant to be.

Importing this package registers them, and any import of ``django_mysqlpool`` does. Only those of ``database`` connect to
the server. ``docs/checks.md`` describes each check by its id.
"""

from .alias_options import (
    check_discard_on_error,
    check_places,
    check_pool_options,
    check_settings,
    check_sizes,
    check_use_threadlocal,
    check_wrong_options,
)
from .database import check_encryption, check_limits, check_recycle
from .engines import check_engines, check_gevent
from .requests import check_asgi_wrapper, check_middleware, check_overload_handler, check_pool_classes
from .timeouts import check_timeouts

__all__ = [
    "check_asgi_wrapper",
    "check_discard_on_error",
    "check_encryption",
    "check_engines",
    "check_gevent",
    "check_limits",
    "check_middleware",
    "check_overload_handler",
    "check_places",
    "check_pool_classes",
    "check_pool_options",
    "check_recycle",
    "check_settings",
    "check_sizes",
    "check_timeouts",
    "check_use_threadlocal",
    "check_wrong_options",
]
