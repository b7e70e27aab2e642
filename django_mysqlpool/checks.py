"""Django's system checks for pooled aliases; importing a pooled backend registers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

_MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
_DOCS = "https://django-mysqlpool.readthedocs.io/en/stable/checks.html"


@register(Tags.compatibility)
def check_pool_options(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: an alias' pool options are wrong. W001: ``use_threadlocal`` is set and has no effect any more."""
    messages: list[CheckMessage] = []
    for alias in connections:
        try:
            options = getattr(connections[alias], "pool_options", None)
        except ImproperlyConfigured as error:
            messages.append(Error(str(error), hint=f"See {_DOCS}#e001", id="django_mysqlpool.E001"))
            continue
        if options is not None and options.use_threadlocal:
            messages.append(
                Warning(
                    f"use_threadlocal is True for the database alias '{alias}', and has no effect.",
                    hint=(
                        "With SQLAlchemy 1.x it gave a thread the same connection at every checkout; that option no "
                        "longer exists. Django gives each thread one connection for each alias in any case: remove "
                        f"use_threadlocal. See {_DOCS}#w001"
                    ),
                    id="django_mysqlpool.W001",
                )
            )
    return messages


@register(Tags.compatibility)
def check_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
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


def _pooled_aliases() -> Iterator[str]:
    for alias in connections:
        try:
            if getattr(connections[alias], "pool_options", None) is not None:
                yield alias
        except ImproperlyConfigured:
            pass  # E001 tells
