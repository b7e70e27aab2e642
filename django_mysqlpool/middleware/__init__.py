"""What ends a request: the entry for Django's ``MIDDLEWARE``."""

from .django import ConnectionReleaseMiddleware

__all__ = ["ConnectionReleaseMiddleware"]
