"""Checks of a project that serves requests: what returns their connections, and if threads can share the pool."""

from __future__ import annotations

from contextlib import suppress
from weakref import WeakSet

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.utils.module_loading import import_string

from .common import DOCS, MIDDLEWARE, pooled_aliases, serves_requests, why_not_importable

#: The ``ConnectionReleaseASGI`` objects of this process.
asgi_wrappers: WeakSet[object] = WeakSet()
#: Pool classes of SQLAlchemy whose connections can't be shared by threads, by name, and what happens.
_NOT_FOR_THREADS = {
    "StaticPool": "All threads use its one connection at the same time: answers get mixed up, and the process may hang.",
    "SingletonThreadPool": "With more threads than pool_size, it closes connections in the middle of their use.",
    "AssertionPool": "It has one connection, and raises an AssertionError in each thread that wants another.",
}


@register(Tags.compatibility)
def check_middleware(**kwargs: object) -> list[CheckMessage]:
    """Report a missing release middleware (W002), or one that is not the first (W003), if an alias is pooled.

    :param kwargs: not used
    :returns: at most one warning
    """
    if not serves_requests() or not any(pooled_aliases()):
        return []
    position = next((n for n, path in enumerate(settings.MIDDLEWARE) if path == MIDDLEWARE), None)
    if position is None:
        return [
            Warning(
                f"A database alias is pooled and MIDDLEWARE has no '{MIDDLEWARE}'.",
                hint=(
                    f"Put it first in MIDDLEWARE: without it, connections go back only after the last byte of a "
                    f"response is sent, and under ASGI only those of one thread. See {DOCS}#w002"
                ),
                id="django_mysqlpool.W002",
            )
        ]
    if position:
        return [
            Warning(
                f"'{MIDDLEWARE}' is number {position + 1} in MIDDLEWARE.",
                hint=(
                    "Put it first: it does not return a connection that the middleware before it takes after the response. "
                    f"See {DOCS}#w003"
                ),
                id="django_mysqlpool.W003",
            )
        ]
    return []


@register(Tags.compatibility)
def check_overload_handler(**kwargs: object) -> list[CheckMessage]:
    """Report a ``MYSQLPOOL_OVERLOAD_HANDLER`` with which no server starts (E006).

    :param kwargs: not used
    :returns: at most one error
    """
    setting = getattr(settings, "MYSQLPOOL_OVERLOAD_HANDLER", True)
    if isinstance(setting, bool):
        return []
    why = why_not_importable(setting) if isinstance(setting, str) else "it is no string"
    if why is None:
        return []
    return [
        Error(
            f"MYSQLPOOL_OVERLOAD_HANDLER is {setting!r}, which fails ({why}).",
            hint=f"It must be True, False or the dotted path of a function (request, error). See {DOCS}#e006",
            id="django_mysqlpool.E006",
        )
    ]


@register(Tags.compatibility)
def check_asgi_wrapper(**kwargs: object) -> list[CheckMessage]:
    """Report an ``ASGI_APPLICATION`` without ``ConnectionReleaseASGI`` (W013), if an alias is pooled.

    It imports the application, as a server does. An application that can't be imported is not reported here.

    :param kwargs: not used
    :returns: at most one warning
    """
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path or not any(pooled_aliases()):
        return []
    application = None
    with suppress(Exception):
        application = import_string(path)
    if application is None or asgi_wrappers:
        return []
    return [
        Warning(
            f"ASGI_APPLICATION is '{path}', which has no ConnectionReleaseASGI.",
            hint=(
                "Wrap it: application = ConnectionReleaseASGI(...). Without it, each request starts a thread for its "
                f"synchronous code, and nothing returns the connections of what is not Django's. See {DOCS}#w013"
            ),
            id="django_mysqlpool.W013",
        )
    ]


@register(Tags.compatibility)
def check_pool_classes(**kwargs: object) -> list[CheckMessage]:
    """Report pool classes that threads can't share (W012), in a project that serves requests.

    :param kwargs: not used
    :returns: one warning for each alias with such a class
    """
    if not serves_requests():
        return []
    return [
        Warning(
            f"The pool of the database alias '{alias}' is a {name}, which is not for the threads of a web server.",
            hint=f"{_NOT_FOR_THREADS[name]} Use QueuePool. See {DOCS}#w012",
            id="django_mysqlpool.W012",
        )
        for alias, options in pooled_aliases()
        if options.pool_class is not None
        for name in [cls.__name__ for cls in options.pool_class.__mro__ if cls.__name__ in _NOT_FOR_THREADS][:1]
    ]
