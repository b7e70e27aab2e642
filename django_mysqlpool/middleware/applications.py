"""The kind of an application: WSGI's ``(environ, start_response)`` or ASGI's ``(scope, receive, send)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction

Application = Callable[..., Any]


def require_wsgi(application: Application) -> None:
    """Check what ``ConnectionReleaseWSGI`` is to wrap.

    :raises TypeError: if it is no WSGI application
    """
    _require_callable(application, "ConnectionReleaseWSGI")
    if _is_coroutine_function(application) or (_accepts(application, 3) and not _accepts(application, 2)):
        raise TypeError(
            f"ConnectionReleaseWSGI got an ASGI application, {application!r}. Give it a WSGI application, or use "
            "ConnectionReleaseASGI."
        )
    if not _accepts(application, 2):
        raise TypeError(f"ConnectionReleaseWSGI got {application!r}, which does not accept (environ, start_response).")


def require_asgi(application: Application) -> None:
    """Check what ``ConnectionReleaseASGI`` is to wrap.

    :raises TypeError: if it is no ASGI application, or one of ASGI's version 2
    """
    _require_callable(application, "ConnectionReleaseASGI")
    if _accepts(application, 3):
        return
    if _accepts(application, 2) and not _is_coroutine_function(application):
        raise TypeError(
            f"ConnectionReleaseASGI got a WSGI application, {application!r}. Give it an ASGI application, or use "
            "ConnectionReleaseWSGI."
        )
    raise TypeError(
        f"ConnectionReleaseASGI got {application!r}, which does not accept (scope, receive, send), as in ASGI 3."
    )


def _require_callable(application: object, wrapper: str) -> None:
    if not callable(application):
        raise TypeError(f"{wrapper} got {application!r}, which can't be called. It wraps an application, not its name.")


def _is_coroutine_function(application: Any) -> bool:
    return iscoroutinefunction(application) or iscoroutinefunction(application.__call__)


def _accepts(application: Application, number: int) -> bool:
    """True if it can be called with so many arguments, as far as is known."""
    try:
        signature = inspect.signature(application)
    except ValueError:  # of some that are not written in Python
        return True
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True
