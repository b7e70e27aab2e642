"""``ConnectionReleaseMiddleware``: the entry for Django's ``MIDDLEWARE``, to stand first in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse

from django_mysqlpool.mysqlpool.scope import Scope
from django_mysqlpool.threading_utils.work import end_from_event_loop


class ConnectionReleaseMiddleware:
    """Gives the request's pooled connections back when its response is ready, before a byte of it is sent.

    Those that a stream takes go back between its chunks, and at its end, however it ends. Connections that were out before
    the request began, such as a test's, are not the request's and stay.
    """

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
        with Scope(partial(request_line, request)) as scope:
            try:
                response: HttpResponseBase = self.get_response(request)
            finally:
                scope.end()
        return _with_stream_released(response, request) if response.streaming else response

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        with Scope(partial(request_line, request)) as scope:
            try:
                response: HttpResponseBase = await self.get_response(request)
            finally:
                await end_from_event_loop(scope)
        return _with_stream_released(response, request)


def request_line(request: HttpRequest) -> str:
    """What a person is told of a request that holds a connection; its query string may hold what is not for a log."""
    return f"{request.method} {request.path}"


def _with_stream_released(response: HttpResponseBase, request: HttpRequest) -> HttpResponseBase:
    # (A FileResponse reads from its file, and its server may send that in ways of its own.)
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        content = response.streaming_content
        if response.is_async:
            response.streaming_content = _AsyncStream(content, request)  # type: ignore[arg-type]
        else:
            response.streaming_content = _Stream(content, request)  # type: ignore[arg-type]
    return response


class _Stream:
    """A stream whose chunks are made in a scope of their own."""

    def __init__(self, content: Iterator[Any], request: HttpRequest) -> None:
        self._content = content
        self._scope = Scope(partial(request_line, request))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with self._scope:
                chunk = next(self._content)
        except BaseException:  # StopIteration, too: the stream has ended
            self._scope.end()
            raise
        self._scope.release_idle()
        return chunk

    def close(self) -> None:
        """Django calls it when the response is closed, whether or not the stream was read to its end."""
        try:
            close = getattr(self._content, "close", None)
            if close is not None:
                with self._scope:
                    close()
        finally:
            self._scope.end()


class _AsyncStream:
    """The same for an asynchronous stream."""

    def __init__(self, content: AsyncIterator[Any], request: HttpRequest) -> None:
        self._content = content
        self._scope = Scope(partial(request_line, request))

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            with self._scope:
                chunk = await anext(self._content)
        except BaseException:
            await end_from_event_loop(self._scope)
            raise
        if self._scope.release_idle(may_ask_server=False):
            await sync_to_async(self._scope.release_idle)()
        return chunk

    def close(self) -> None:
        """Django calls it, in the thread of the request's synchronous code, when the response is closed."""
        self._scope.end()
