"""Checks of engines: Django's own where a pooled one was meant, and a driver that does not suit gevent."""

from __future__ import annotations

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from django_mysqlpool.mysqlpool.drivers.sockets import is_patched_by_gevent

from .common import DOCS, MIDDLEWARE, SETTINGS, misplaced_keys, pooled_aliases

#: Django's engines for MySQL, by the engine of this package that takes the place of each.
_ENGINES = {
    "django.db.backends.mysql": "django_mysqlpool.backends.mysqlpool",
    "django.contrib.gis.db.backends.mysql": "django_mysqlpool.backends.mysqlpool_gis",
}


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
            hint=f"Its ENGINE must be '{engine}', or else the driver refuses to connect. See {DOCS}#e002",
            id="django_mysqlpool.E002",
        )
        for alias, engine in ours.items()
        if "pool" in (connections.settings[alias]["OPTIONS"] or ())
    ]
    if errors or not ours or any(pooled_aliases()):
        return errors
    signs = [name for name in SETTINGS if hasattr(settings, name)] + [MIDDLEWARE] * (MIDDLEWARE in settings.MIDDLEWARE)
    signs += [f"DATABASES['{alias}']['{key}']" for alias in ours for key in misplaced_keys(connections.settings[alias])]
    return [
        Warning(
            f"No database alias is pooled, though the settings have {' and '.join(signs)}.",
            hint=(
                f"The ENGINE of '{alias}' is Django's: '{engine}' is the one with a pool. Or remove what has no effect. "
                f"See {DOCS}#w007"
            ),
            id="django_mysqlpool.W007",
        )
        for alias, engine in list(ours.items())[:1]
        if signs
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
                f"See {DOCS}#w006"
            ),
            id="django_mysqlpool.W006",
        )
        for alias, _ in pooled_aliases()
        if not connections[alias].driver.is_cooperative  # type: ignore[attr-defined]
    ]
