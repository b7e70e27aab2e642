"""Django's own receivers of ``request_started``, replaced by a coroutine that needs no thread if they have nothing to do.

Under ASGI, Django calls the synchronous receivers of a signal in the request's thread, which takes a change of threads and
back. These two clear the log that DEBUG fills, and close connections that are past their age: the first has nothing to do
if DEBUG is off, and the second if each alias is pooled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.signals import request_started
from django.db import close_old_connections, reset_queries

from django_mysqlpool.mysqlpool.backend.aliases import are_all_pooled

#: Those that were connected when they were replaced.
_replaced: list[Callable[..., Any]] = []


def replace_receivers() -> None:
    """Replace Django's two receivers in this process, if they are connected; all others stay."""
    for receiver in (reset_queries, close_old_connections):
        if request_started.disconnect(receiver) and receiver not in _replaced:
            _replaced.append(receiver)
    if _replaced:
        request_started.connect(prepare_request, dispatch_uid=__name__)


async def prepare_request(**named: Any) -> None:
    """Call Django's receivers in the request's thread, unless they have nothing to do."""
    if settings.DEBUG or not are_all_pooled():
        await sync_to_async(_call_replaced)(**named)


def _call_replaced(**named: Any) -> None:
    for receiver in _replaced:
        receiver(**named)
