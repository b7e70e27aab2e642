"""``ConnectionReleaseMiddleware``, the first entry of Django's ``MIDDLEWARE``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from weakref import ref

from asgiref.sync import SyncToAsync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse

from django_mysqlpool import checks
from django_mysqlpool.mysqlpool.backend.aliases import import_pool, refuse_wrong_options
from django_mysqlpool.mysqlpool.backend.receivers import await_first_request, put_back_if_wanted, receivers
from django_mysqlpool.mysqlpool.backend.scope import Scope, current_scope, reset_current_scope, set_current_scope
from django_mysqlpool.mysqlpool.log import logger
from django_mysqlpool.threading_utils.work import end_from_event_loop

from . import overload


class ConnectionReleaseMiddleware:
    """Returns the request's pooled connections when its response is ready, before a byte of it is sent.

    Connections that a stream checks out return between its chunks, and at its end, however it ends. A connection that was
    out before the request began, such as a test's, does not belong to the request and stays out. Put the middleware first
    into ``MIDDLEWARE``; the system checks W002 and W003 look at that.

    Under WSGI, Django's own receivers of a request's signals are disconnected while they have nothing to do, unless the
    setting ``MYSQLPOOL_REPLACE_RECEIVERS`` is ``False``.

    A ``PoolTimeout`` that leaves the view is answered with ``503 Service Unavailable``, unless ``DEBUG`` is on or the
    setting ``MYSQLPOOL_OVERLOAD_HANDLER`` says otherwise.

    :param get_response: the next middleware or the view; Django passes it. Both synchronous and asynchronous ones are
        supported.
    :raises django.core.exceptions.ImproperlyConfigured: if the pool options of an alias, or one of the settings
        ``MYSQLPOOL_OVERLOAD_HANDLER`` and ``MYSQLPOOL_REPLACE_RECEIVERS``, are wrong
    """

    #: What each request looks up. (Django copies the dict of a middleware, and from then on Python is slower with it.)
    __slots__ = ("__dict__", "__weakref__", "get_response", "is_async")

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        refuse_wrong_options()
        import_pool()
        overload.handler()  # raises if the setting is wrong
        for message in (*checks.check_engines(), *checks.check_pool_classes()):  # a web server runs no checks
            if not message.is_silenced():
                logger.warning("%s %s", message.msg, message.hint)
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        #: True until the first request has shown if ``ConnectionReleaseASGI`` is around the application.
        self._must_look_for_wrapper = self.is_async
        if self.is_async:
            markcoroutinefunction(self)
        else:
            await_first_request()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._respond_async(request)
        scope, token = Scope(request_line, (request,)), None
        try:
            token = set_current_scope(scope)
            try:
                response: HttpResponseBase = self.get_response(request)
            finally:
                scope.end()
        except BaseException:
            if not scope.has_ended:  # the first end() was interrupted
                scope.end()
            raise
        finally:
            if token is None:  # an interrupt came before it was stored
                set_current_scope(scope.parent)
            else:
                reset_current_scope(token)
        if receivers.are_all_aside:
            put_back_if_wanted()
        return _with_stream_released(response, request) if response.streaming else response

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        if self._must_look_for_wrapper:
            self._must_look_for_wrapper = False
            _warn_if_not_wrapped()
        with Scope(request_line, (request,)) as scope:
            try:
                response: HttpResponseBase = await self.get_response(request)
            finally:
                await end_from_event_loop(scope)
        return _with_stream_released(response, request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Answer a ``PoolTimeout`` of the view's as overload; Django calls this."""
        return overload.answer(request, exception)


def _warn_if_not_wrapped() -> None:
    # Django's ASGI handler enters a ThreadSensitiveContext; the test client, which needs no wrapper, does not.
    if SyncToAsync.thread_sensitive_context.get(None) is not None and current_scope() is None:
        logger.warning(
            "The ASGI application is not wrapped in ConnectionReleaseASGI: each request starts a thread for its "
            "synchronous code. See the check W013."
        )


def request_line(request: HttpRequest) -> str:
    """Name a request in messages. The query string is left out, because it may contain secrets."""
    return f"{request.method} {request.path}"


def _with_stream_released(response: HttpResponseBase, request: HttpRequest) -> HttpResponseBase:
    # A FileResponse is left alone: it reads from its file, and the server may have its own way to send that.
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        content = response.streaming_content
        if response.is_async:
            response.streaming_content = _AsyncStream(content, request)  # type: ignore[arg-type]
        else:
            response.streaming_content = _Stream(content, request)  # type: ignore[arg-type]
    return response


class _Stream:
    """A stream whose chunks are made in a scope of its own."""

    def __init__(self, content: Iterator[Any], request: HttpRequest) -> None:
        self._content = content
        self._scope = Scope(request_line, (request,))
        self._scope.owner = ref(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with self._scope:
                chunk = next(self._content)
        except BaseException:  # StopIteration too: the stream has ended
            self._scope.end()
            raise
        self._scope.release_idle()
        return chunk

    def close(self) -> None:
        """Close the content and end the scope. Django calls it for each response, also if the client has left early."""
        try:
            close = getattr(self._content, "close", None)
            if close is not None:
                with self._scope:
                    close()
        finally:
            self._scope.end()


class _AsyncStream:
    """An asynchronous stream whose chunks are made in a scope of its own."""

    def __init__(self, content: AsyncIterator[Any], request: HttpRequest) -> None:
        self._content = content
        self._scope = Scope(request_line, (request,))
        self._scope.owner = ref(self)

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
        """End the scope. Django calls it in the thread of the request's synchronous code when it closes the response."""
        self._scope.end()
