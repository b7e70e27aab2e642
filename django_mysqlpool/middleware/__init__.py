"""What ends a request: the entry for Django's ``MIDDLEWARE``, and wrappers for WSGI and ASGI applications."""

from .asgi import ConnectionReleaseASGI
from .django import ConnectionReleaseMiddleware
from .wsgi import ConnectionReleaseWSGI

__all__ = ["ConnectionReleaseASGI", "ConnectionReleaseMiddleware", "ConnectionReleaseWSGI"]
