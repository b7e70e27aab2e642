"""Django's system checks for pooled aliases, and for those that were meant to be.

Importing this module registers them. The engines' modules import it, the middleware's do, and ``django_mysqlpool`` in
INSTALLED_APPS does. No check connects to the server. ``docs/checks.md`` describes each check by its id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from .mysqlpool.backend.other_names import suggest
from .mysqlpool.backend.settings import OPTION_NAMES, function_at
from .mysqlpool.drivers.sockets import is_patched_by_gevent
from .mysqlpool.options import PoolOptions

_MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
_SETTINGS = ("MYSQLPOOL_ARGUMENTS", "MYSQLPOOL_BACKEND", "MYSQLPOOL_OVERLOAD_HANDLER")
#: Django's engines for MySQL, by the engine of this package that takes the place of each.
_ENGINES = {
    "django.db.backends.mysql": "django_mysqlpool.backends.mysqlpool",
    "django.contrib.gis.db.backends.mysql": "django_mysqlpool.backends.mysqlpool_gis",
}
_DOCS = "https://django-mysqlpool.readthedocs.io/en/stable/checks.html"


@register(Tags.compatibility)
def check_use_threadlocal(**kwargs: object) -> list[CheckMessage]:
    """Report ``use_threadlocal = True``, which has had no effect since SQLAlchemy 2.0 (W001).

    :param kwargs: what Django passes to every check; not used
    :returns: one warning for each pooled alias with the option
    :raises django.core.exceptions.ImproperlyConfigured: if the pool options of an alias are wrong, as in all these checks
    """
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
    """Report a missing release middleware (W002), or one that is not the first (W003), if an alias is pooled.

    :param kwargs: not used
    :returns: at most one warning
    """
    # (A project that serves no requests through Django has neither.)
    if not (settings.MIDDLEWARE or getattr(settings, "ROOT_URLCONF", None)) or not any(_pooled_aliases()):
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
                    "Put it first: it does not return a connection that the middleware before it takes after the response. "
                    f"See {_DOCS}#w003"
                ),
                id="django_mysqlpool.W003",
            )
        ]
    return []


# With --deploy only: networks that lose packets are found in production, not on a developer's machine.
@register(Tags.compatibility, deploy=True)
def check_timeouts(**kwargs: object) -> list[CheckMessage]:
    """Report pooled aliases without ``read_timeout`` or ``write_timeout``, whose statements may wait for ever (W004).

    :param kwargs: not used
    :returns: one warning for each such alias
    """
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


@register(Tags.compatibility)
def check_gevent(**kwargs: object) -> list[CheckMessage]:
    """Report gevent with a driver that waits in C, so that a query stops all greenlets of the process (W006).

    :param kwargs: not used
    :returns: one warning for each pooled alias with such a driver; none if gevent has not patched this process
    """
    if not is_patched_by_gevent():
        return []
    return [
        Warning(
            f"gevent is at work, and a query of the database alias '{alias}' stops every greenlet until it is answered.",
            hint=(
                "mysqlclient waits in C. Use PyMySQL: call pymysql.install_as_MySQLdb() at the top of the settings. "
                f"See {_DOCS}#w006"
            ),
            id="django_mysqlpool.W006",
        )
        for alias, _ in _pooled_aliases()
        if not connections[alias].driver.is_cooperative  # type: ignore[attr-defined]
    ]


def _missing_timeouts(options: Mapping[str, object]) -> list[str]:
    return [name for name in ("read_timeout", "write_timeout") if not options.get(name)]


@register(Tags.compatibility)
def check_pool_options(**kwargs: object) -> list[CheckMessage]:
    """Report ``POOL_OPTIONS`` beside ``OPTIONS``: they belong to django-db-connection-pool, and have no effect (W005).

    :param kwargs: not used
    :returns: one warning for each such alias
    """
    return [
        Warning(
            f"The database alias '{alias}' has POOL_OPTIONS, which have no effect.",
            hint=(
                "They are django-db-connection-pool's. Move them into OPTIONS['pool'], in lower case, or else the pool has "
                f"its defaults. See {_DOCS}#w005"
            ),
            id="django_mysqlpool.W005",
        )
        for alias, _ in _pooled_aliases()
        if "POOL_OPTIONS" in connections[alias].settings_dict
    ]


@register(Tags.compatibility)
def check_discard_on_error(**kwargs: object) -> list[CheckMessage]:
    """Report a ``discard_on_error`` that can't be imported, or is not a function (E001).

    :param kwargs: not used
    :returns: one error for each such alias
    """
    return [
        Error(
            f"discard_on_error of the database alias '{alias}' is {options.discard_on_error!r}, which fails ({why}).",
            hint=(
                "It must be the dotted path of a function (error, alias). Errors of statements are classified without it. "
                f"See {_DOCS}#e001"
            ),
            id="django_mysqlpool.E001",
        )
        for alias, options in _pooled_aliases()
        if options.discard_on_error is not None and (why := _why_not_importable(options.discard_on_error))
    ]


@register(Tags.compatibility)
def check_engines(**kwargs: object) -> list[CheckMessage]:
    """Report Django's engine where this package's was meant: with ``OPTIONS["pool"]`` (E002), or nowhere (W007).

    :param kwargs: not used
    :returns: an error for each alias with a pool's options; a warning if nothing else is pooled
    """
    ours = {alias: engine for alias in connections if (engine := _ENGINES.get(connections.settings[alias]["ENGINE"]))}
    errors: list[CheckMessage] = [
        Error(
            f"The OPTIONS of the database alias '{alias}' have 'pool', which Django's engine does not know.",
            hint=f"Its ENGINE must be '{engine}', or else the driver refuses to connect. See {_DOCS}#e002",
            id="django_mysqlpool.E002",
        )
        for alias, engine in ours.items()
        if "pool" in connections.settings[alias]["OPTIONS"]
    ]
    if errors or not ours or any(_pooled_aliases()):
        return errors
    signs = [name for name in _SETTINGS if hasattr(settings, name)] + [_MIDDLEWARE] * (_MIDDLEWARE in settings.MIDDLEWARE)
    return [
        Warning(
            f"No database alias is pooled, though the settings have {' and '.join(signs)}.",
            hint=(
                f"The ENGINE of '{alias}' is Django's: '{engine}' is the one with a pool. Or remove what has no effect. "
                f"See {_DOCS}#w007"
            ),
            id="django_mysqlpool.W007",
        )
        for alias, engine in list(ours.items())[:1]
        if signs
    ]


@register(Tags.compatibility)
def check_places(**kwargs: object) -> list[CheckMessage]:
    """Report options of the pool that stand in a wrong place of ``DATABASES``, where they fail (E003) or do nothing (W008).

    :param kwargs: not used
    :returns: one message for each such key
    """
    messages: list[CheckMessage] = []
    for alias, _ in _pooled_aliases():
        entry = connections.settings[alias]
        messages += [
            Error(
                f"The OPTIONS of the database alias '{alias}' have {name!r}, which the driver does not know.",
                hint=f"It belongs in OPTIONS['pool']. See {_DOCS}#e003",
                id="django_mysqlpool.E003",
            )
            for name in sorted(OPTION_NAMES & entry["OPTIONS"].keys())
        ]
        messages += [
            Warning(
                f"The database alias '{alias}' has the key {name!r}, which has no effect.",
                hint=f"The options of the pool belong in OPTIONS['pool']. See {_DOCS}#w008",
                id="django_mysqlpool.W008",
            )
            for name in entry
            if name.lower() in {"pool", "options"} and name != "OPTIONS"
        ]
    return messages


@register(Tags.compatibility)
def check_settings(**kwargs: object) -> list[CheckMessage]:
    """Report settings that begin with ``MYSQLPOOL_`` and are none of this package's (W009).

    :param kwargs: not used
    :returns: one warning for each
    """
    return [
        Warning(
            f"The setting {name} has no effect.",
            hint=f"This package's settings are {', '.join(_SETTINGS)}.{suggest(name, _SETTINGS)} See {_DOCS}#w009",
            id="django_mysqlpool.W009",
        )
        for name in dir(settings)
        if name.startswith("MYSQLPOOL_") and name not in _SETTINGS
    ]


def _why_not_importable(path: str) -> str | None:
    try:
        function_at(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _pooled_aliases() -> Iterator[tuple[str, PoolOptions]]:
    """Yield each pooled alias with its options.

    Making a wrapper checks its options, so ``ImproperlyConfigured`` is raised here if they are wrong.
    """
    for alias in connections:
        options = getattr(connections[alias], "pool_options", None)
        if options is not None:
            yield alias, options
