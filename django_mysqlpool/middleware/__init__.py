"""The middleware for Django, and the wrappers for WSGI and ASGI applications, that return connections after a request."""

from .asgi import ConnectionReleaseASGI
from .django import ConnectionReleaseMiddleware
from .wsgi import ConnectionReleaseWSGI

__all__ = ["ConnectionReleaseASGI", "ConnectionReleaseMiddleware", "ConnectionReleaseWSGI"]
