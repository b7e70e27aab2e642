"""The answer to a request that got no connection: that the site is busy (503), not that it is broken (500)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from django_mysqlpool.mysqlpool.backend.settings import function_at
from django_mysqlpool.mysqlpool.errors import PoolTimeout
from django_mysqlpool.mysqlpool.log import logger

#: Seconds after which a client is told to try again. A pool that is full serves many requests in a second.
RETRY_AFTER = 1

Handler = Callable[[HttpRequest, PoolTimeout], HttpResponseBase]


def handler() -> Handler | None:
    """Find what the setting ``MYSQLPOOL_OVERLOAD_HANDLER`` says.

    :returns: ``service_unavailable`` if the setting is missing or ``True``; ``None`` if it is ``False``; otherwise the
        function ``(request, error)`` whose dotted path it is
    :raises django.core.exceptions.ImproperlyConfigured: if it is none of these, or can't be imported
    """
    setting = getattr(settings, "MYSQLPOOL_OVERLOAD_HANDLER", True)
    if isinstance(setting, bool):
        return service_unavailable if setting else None
    if not isinstance(setting, str):
        raise _wrong(setting, "it must be True, False or the dotted path of a function (request, error)")
    return _function_at(setting)


@cache
def _function_at(path: str) -> Handler:
    try:
        return function_at(path)
    except ImportError as error:
        raise _wrong(path, f"which can't be imported: {error}") from error
    except TypeError as error:
        raise _wrong(path, "which is not a function (request, error)") from error


def _wrong(setting: object, words: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"MYSQLPOOL_OVERLOAD_HANDLER is {setting!r}, {words}.")


def service_unavailable(*_: object) -> HttpResponse:
    """Answer with ``503 Service Unavailable`` and ``Retry-After``. The reason is for the log, not for the client."""
    return HttpResponse(
        "The server is busy. Please try again in a moment.\n",
        content_type="text/plain; charset=utf-8",
        status=503,
        headers={"Retry-After": str(RETRY_AFTER)},
    )


def answer(request: HttpRequest, error: Exception) -> HttpResponseBase | None:
    """Answer a request whose view has raised an error, if that tells of overload.

    :returns: ``None``: Django handles the error as always
    """
    if settings.DEBUG or not isinstance(error, PoolTimeout):
        return None
    respond = handler()
    if respond is None:
        return None
    logger.error("%s %s got no connection: %s", request.method, request.path, error)
    return respond(request, error)
