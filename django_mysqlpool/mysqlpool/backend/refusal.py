"""Wrong options of an alias: who tells a person of them. This is imported only where some are wrong."""

from __future__ import annotations

from traceback import walk_stack

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

_MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
#: Module and name of Django's functions that run a management command. It has system checks, and shows a CommandError
#: without a traceback.
_COMMANDS = {
    ("django.core.management", "execute"),
    ("django.core.management.base", "execute"),
    ("django.core.management.base", "check"),
}
#: Those that make an application, and with it the middleware.
_LOADERS = {("django.core.wsgi", "get_wsgi_application"), ("django.core.asgi", "get_asgi_application")}


class WrongOptions(ImproperlyConfigured, CommandError):
    """The options of an alias are wrong; raised where a connection is wanted, or when a server starts."""


def is_told_later() -> bool:
    """True if something tells of wrong options after the caller has gone on.

    A management command does, by the system checks or at its first connection. An application that is being loaded does
    if it has the middleware. Nothing else would, a worker of Celery's for instance, so the caller has to raise the error,
    though that is in the middle of ``django.setup()``.
    """
    tellers = _COMMANDS | (_LOADERS if _MIDDLEWARE in settings.MIDDLEWARE else set())
    return any((frame.f_globals.get("__name__"), frame.f_code.co_name) in tellers for frame, _ in walk_stack(None))
