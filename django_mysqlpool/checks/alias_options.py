"""Checks of the options of pools: what is wrong, misplaced, misspelt, or means something else than it seems to."""

from __future__ import annotations

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from django_mysqlpool.mysqlpool.backend.other_names import suggest
from django_mysqlpool.mysqlpool.backend.settings import OPTION_NAMES

from .common import DOCS, SETTINGS, STATUS_FOLDER, misplaced_keys, pooled_aliases, why_not_importable

#: The defaults of ``pool_size`` and ``max_overflow``, which are SQLAlchemy's.
DEFAULT_SIZE, DEFAULT_OVERFLOW = 5, 10


@register(Tags.compatibility)
def check_wrong_options(**kwargs: object) -> list[CheckMessage]:
    """Report pooled aliases whose options are wrong (E004).

    :param kwargs: what Django passes to every check; not used
    :returns: one error for each such alias
    :raises django.core.exceptions.ImproperlyConfigured: instead, if this is not run by a management command: others that
        run the checks, Celery's workers for instance, start in spite of an error
    """
    return [
        Error(
            wrong_options,
            hint=f"No connection can be opened for this alias until it is corrected. See {DOCS}#e004",
            id="django_mysqlpool.E004",
        )
        for alias in connections
        if (wrong_options := getattr(connections[alias], "wrong_options", None))
    ]


@register(Tags.compatibility)
def check_sizes(**kwargs: object) -> list[CheckMessage]:
    """Report sizes that mean something else than they seem to.

    That is a ``pool_size`` that is not the limit (W010), or is no limit at all (W011), and a ``min_idle`` above the limit
    (W016).

    :param kwargs: not used
    :returns: at most two warnings for each alias
    """
    messages: list[CheckMessage] = []
    for alias, options in pooled_aliases():
        if options.pool_class is not None:
            continue
        size, overflow = (options.arguments.get(name) for name in ("pool_size", "max_overflow"))
        cap = (DEFAULT_SIZE if size is None else size) + (DEFAULT_OVERFLOW if overflow is None else overflow)
        min_idle = options.arguments.get("min_idle", 0)
        if size != 0 and overflow != -1 and min_idle > cap:
            messages.append(
                Warning(
                    f"min_idle of the database alias '{alias}' is {min_idle}, and its pool may have {cap} connections.",
                    hint=f"Lower min_idle, or raise pool_size or max_overflow. See {DOCS}#w016",
                    id="django_mysqlpool.W016",
                )
            )
        if size is None:
            continue
        if size == 0 and overflow != -1:
            messages.append(
                Warning(
                    f"The pool of the database alias '{alias}' has no cap, because pool_size is 0.",
                    hint=(
                        "0 is no limit, as in SQLAlchemy. For no pool, set OPTIONS['pool'] to False; for no limit, set "
                        f"max_overflow to -1. See {DOCS}#w011"
                    ),
                    id="django_mysqlpool.W011",
                )
            )
        elif overflow is None and 0 < size < DEFAULT_SIZE:  # somebody wants few
            messages.append(
                Warning(
                    f"The pool of the database alias '{alias}' may have {cap} connections, though pool_size is {size}.",
                    hint=(
                        f"max_overflow is added to it, {DEFAULT_OVERFLOW} by default. For a cap of {size}, set it to 0. "
                        f"See {DOCS}#w010"
                    ),
                    id="django_mysqlpool.W010",
                )
            )
    return messages


@register(Tags.compatibility)
def check_use_threadlocal(**kwargs: object) -> list[CheckMessage]:
    """Report ``use_threadlocal = True``, which has had no effect since SQLAlchemy 2.0 (W001).

    :param kwargs: not used
    :returns: one warning for each pooled alias with the option
    """
    return [
        Warning(
            f"use_threadlocal is True for the database alias '{alias}', and has no effect.",
            hint=(
                "With SQLAlchemy 1.x it gave a thread the same connection at every checkout; that option no longer "
                "exists. Django gives each thread one connection for each alias in any case: remove use_threadlocal. "
                f"See {DOCS}#w001"
            ),
            id="django_mysqlpool.W001",
        )
        for alias, options in pooled_aliases()
        if options.use_threadlocal
    ]


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
                f"its defaults. See {DOCS}#w005"
            ),
            id="django_mysqlpool.W005",
        )
        for alias, _ in pooled_aliases()
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
                f"See {DOCS}#e001"
            ),
            id="django_mysqlpool.E001",
        )
        for alias, options in pooled_aliases()
        if options.discard_on_error is not None and (why := why_not_importable(options.discard_on_error))
    ]


@register(Tags.compatibility)
def check_places(**kwargs: object) -> list[CheckMessage]:
    """Report options of the pool that stand in a wrong place of ``DATABASES``, where they fail (E003) or do nothing (W008).

    :param kwargs: not used
    :returns: one message for each such key
    """
    messages: list[CheckMessage] = []
    for alias in connections:
        wrapper, entry = connections[alias], connections.settings[alias]
        if getattr(wrapper, "pool_options", None) is None and not getattr(wrapper, "wrong_options", None):
            continue
        messages += [
            Error(
                f"The OPTIONS of the database alias '{alias}' have {name!r}, which the driver does not know.",
                hint=f"It belongs in OPTIONS['pool']. See {DOCS}#e003",
                id="django_mysqlpool.E003",
            )
            for name in sorted(OPTION_NAMES.intersection(entry["OPTIONS"] or ()))
        ]
        messages += [
            Warning(
                f"The database alias '{alias}' has the key {name!r}, which has no effect.",
                hint=f"The options of the pool belong in OPTIONS['pool']. See {DOCS}#w008",
                id="django_mysqlpool.W008",
            )
            for name in misplaced_keys(entry)
        ]
    return messages


@register(Tags.compatibility)
def check_settings(**kwargs: object) -> list[CheckMessage]:
    """Report settings that begin with ``MYSQLPOOL_`` and have no effect (W009).

    They are none of this package's, or need its application.

    :param kwargs: not used
    :returns: one warning for each
    """
    messages: list[CheckMessage] = [
        Warning(
            f"The setting {name} has no effect.",
            hint=f"This package's settings are {', '.join(SETTINGS)}.{suggest(name, SETTINGS)} See {DOCS}#w009",
            id="django_mysqlpool.W009",
        )
        for name in dir(settings)
        if name.startswith("MYSQLPOOL_") and name not in SETTINGS
    ]
    if getattr(settings, STATUS_FOLDER, None) is not None and not apps.is_installed("django_mysqlpool"):
        messages.append(
            Warning(
                f"The setting {STATUS_FOLDER} has no effect.",
                hint=f"INSTALLED_APPS lacks 'django_mysqlpool', which has processes write there. See {DOCS}#w009",
                id="django_mysqlpool.W009",
            )
        )
    return messages
