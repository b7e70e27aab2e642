"""``ConnectionReleaseMiddleware``: the entry for Django's ``MIDDLEWARE``, to stand first in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_mysqlpool.mysqlpool.registry import give_back, in_atomic_block


class ConnectionReleaseMiddleware:
    """Gives the request's pooled connections back when its response is ready, before a byte of it is sent."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._respond_async(request)
        of_the_caller = in_atomic_block()
        try:
            response: HttpResponseBase = self.get_response(request)
            return response
        finally:
            give_back(keep=of_the_caller)

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        of_the_caller = await sync_to_async(in_atomic_block)()
        try:
            response: HttpResponseBase = await self.get_response(request)
            return response
        finally:
            # Django runs the request's synchronous code, and so its connections, in one thread; this goes there.
            await sync_to_async(give_back)(keep=of_the_caller)
