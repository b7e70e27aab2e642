"""Names and addresses that several checks use, and the aliases that they look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.conf import settings
from django.db import connections

from django_mysqlpool.mysqlpool.backend.settings import function_at
from django_mysqlpool.mysqlpool.options import PoolOptions

MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
STATUS_FOLDER = "MYSQLPOOL_STATUS_FOLDER"
SETTINGS = (
    "MYSQLPOOL_ARGUMENTS",
    "MYSQLPOOL_BACKEND",
    "MYSQLPOOL_OVERLOAD_HANDLER",
    "MYSQLPOOL_STATUS_ACCESS",
    STATUS_FOLDER,
    "MYSQLPOOL_STATUS_TOKEN",
)
DOCS = "https://django-mysqlpool.readthedocs.io/en/stable/checks.html"


def pooled_aliases() -> Iterator[tuple[str, PoolOptions]]:
    """Yield each pooled alias with its options; not those whose options are wrong, of which E004 tells."""
    for alias in connections:
        options = getattr(connections[alias], "pool_options", None)
        if options is not None:
            yield alias, options


def serves_requests() -> bool:
    """True if the project has what Django answers requests with. One of commands or workers only may have neither."""
    return bool(settings.MIDDLEWARE or getattr(settings, "ROOT_URLCONF", None))


def misplaced_keys(entry: Iterable[str]) -> list[str]:
    """The keys of an entry of ``DATABASES`` that are meant for ``OPTIONS["pool"]``. Django ignores them."""
    return [key for key in entry if key.lower() in {"pool", "options"} and key != "OPTIONS"]


def why_not_importable(path: str) -> str | None:
    """The error of importing the function at ``path``; ``None``: it can be imported."""
    try:
        function_at(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
