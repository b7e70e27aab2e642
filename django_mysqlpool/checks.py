"""Django's system checks for pooled aliases; importing a pooled backend registers them."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import connections

from .mysqlpool.options import PoolOptions

_MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
_DOCS = "https://django-mysqlpool.readthedocs.io/en/stable/checks.html"


@register(Tags.compatibility)
def check_use_threadlocal(**kwargs: object) -> list[CheckMessage]:
    """W001: ``use_threadlocal`` is set, and has no effect any more."""
    return [
        Warning(
            f"use_threadlocal is True for the database alias '{alias}', and has no effect.",
            hint=(
                "With SQLAlchemy 1.x it gave a thread the same connection at every checkout; that option no longer "
                "exists. Django gives each thread one connection for each alias in any case: remove use_threadlocal. "
                f"See {_DOCS}#w001"
            ),
            id="django_mysqlpool.W001",
        )
        for alias, options in _pooled_aliases()
        if options.use_threadlocal
    ]


@register(Tags.compatibility)
def check_middleware(**kwargs: object) -> list[CheckMessage]:
    """W002: the release middleware is missing while an alias is pooled. W003: it is not the first."""
    if not any(_pooled_aliases()):
        return []
    position = next((n for n, path in enumerate(settings.MIDDLEWARE) if path == _MIDDLEWARE), None)
    if position is None:
        return [
            Warning(
                f"A database alias is pooled and MIDDLEWARE has no '{_MIDDLEWARE}'.",
                hint=(
                    f"Put it first in MIDDLEWARE: without it, connections go back only after the last byte of a "
                    f"response is sent, and under ASGI only those of one thread. See {_DOCS}#w002"
                ),
                id="django_mysqlpool.W002",
            )
        ]
    if position:
        return [
            Warning(
                f"'{_MIDDLEWARE}' is number {position + 1} in MIDDLEWARE.",
                hint=(
                    f"Put it first: what the middleware before it reads from the database after the response is not "
                    f"given back by it. See {_DOCS}#w003"
                ),
                id="django_mysqlpool.W003",
            )
        ]
    return []


def _pooled_aliases() -> Iterator[tuple[str, PoolOptions]]:
    """Making a wrapper checks its options: what is wrong with them is an ``ImproperlyConfigured`` from here."""
    for alias in connections:
        options = getattr(connections[alias], "pool_options", None)
        if options is not None:
            yield alias, options
