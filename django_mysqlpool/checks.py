"""Django's system checks for pooled aliases; importing a pooled backend registers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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


# With --deploy only: a network that swallows packets is production's, and a developer's machine is none.
@register(Tags.compatibility, deploy=True)
def check_timeouts(**kwargs: object) -> list[CheckMessage]:
    """W004: a statement of a pooled alias may wait for its answer for ever."""
    return [
        Warning(
            f"The OPTIONS of the database alias '{alias}' have no {' and no '.join(missing)}.",
            hint=(
                "Where the network swallows packets, or the server's machine is gone, a statement waits for ever without, "
                "and its connection counts for the pool's cap all that time. Set read_timeout to the longest query's time "
                f"and 30 to 60 seconds more, and write_timeout to 30. See {_DOCS}#w004"
            ),
            id="django_mysqlpool.W004",
        )
        for alias, _ in _pooled_aliases()
        if (missing := _missing_timeouts(connections[alias].settings_dict["OPTIONS"]))
    ]


def _missing_timeouts(options: Mapping[str, object]) -> list[str]:
    return [name for name in ("read_timeout", "write_timeout") if not options.get(name)]


@register(Tags.compatibility)
def check_pool_options(**kwargs: object) -> list[CheckMessage]:
    """W006: POOL_OPTIONS, which another pool reads, stand beside OPTIONS."""
    return [
        Warning(
            f"The database alias '{alias}' has POOL_OPTIONS, which have no effect.",
            hint=(
                "They are django-db-connection-pool's. Move them into OPTIONS['pool'], in lower case, or else the pool has "
                f"its defaults. See {_DOCS}#w006"
            ),
            id="django_mysqlpool.W006",
        )
        for alias, _ in _pooled_aliases()
        if "POOL_OPTIONS" in connections[alias].settings_dict
    ]


def _pooled_aliases() -> Iterator[tuple[str, PoolOptions]]:
    """Making a wrapper checks its options: what is wrong with them is an ``ImproperlyConfigured`` from here."""
    for alias in connections:
        options = getattr(connections[alias], "pool_options", None)
        if options is not None:
            yield alias, options
