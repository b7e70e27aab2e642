"""The end of a response under ASGI: it takes no change of threads if nothing is to be closed.

Django has the request's thread call ``response.close()``, for a file or a stream may have to be closed, and receivers of
``request_finished`` are called. Most often there is nothing to do for either. To ask a thread takes 5 to 8 % of a short
request, and the thread has to be free.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished
from django.http.response import HttpResponseBase

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.backend.receivers import receivers

_DJANGOS_CLOSE = HttpResponseBase.close


def idle_close(call: Callable[..., Any]) -> Callable[[], None] | None:
    """Tell if an executor is asked to close a response that has nothing to close but what the event loop may close.

    :param call: what asgiref hands to the executor
    :returns: the response's ``close()``; ``None``: it is another call, or has something to do
    """
    close: Any = compat.called_in_thread(call)
    if not receivers.are_all_aside or getattr(close, "__func__", None) is not _DJANGOS_CLOSE:
        return None
    is_idle = all(map(_is_idle, compat.closers_of(close.__self__))) and not _is_end_heard()
    return close if is_idle else None


def _is_idle(closer: Any) -> bool:
    """True for the ``close()`` of a request without files. Its body the event loop closes anyway."""
    return getattr(closer, "__func__", None) is ASGIRequest.close and not vars(closer.__self__).get("_files")


def _is_end_heard() -> bool:
    """True if a receiver of ``request_finished`` may have something to do that takes a thread.

    Beside the one that is put aside Django connects one that resets a variable, and one for caches, most kinds of which
    have nothing to close.
    """
    harmless = {id(reset_urlconf)}
    cache: Any = sys.modules.get("django.core.cache")  # (to import it connects its receiver)
    if cache is not None and all(
        type(used).close is cache.BaseCache.close for used in cache.caches.all(initialized_only=True)
    ):
        harmless.add(id(cache.close_caches))
    return any(identity[0] not in harmless for identity, *_ in request_finished.receivers)
