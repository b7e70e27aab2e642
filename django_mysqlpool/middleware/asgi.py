"""``ConnectionReleaseASGI``, a wrapper for an ASGI application, Django's or any other that uses the ORM."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from django_mysqlpool.checks.requests import asgi_wrappers
from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.backend.aliases import import_pool, refuse_wrong_options
from django_mysqlpool.mysqlpool.backend.pools import close_pool
from django_mysqlpool.mysqlpool.backend.receivers import put_aside, put_back_if_wanted, receivers
from django_mysqlpool.mysqlpool.backend.scope import Scope

from .applications import require_asgi
from .threads import Loan, WarmThreads

if TYPE_CHECKING:
    import threading

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Default number of warm threads: as many as Starlette has for its synchronous endpoints (anyio's default limiter).
DEFAULT_THREADS = 40


class ConnectionReleaseASGI:
    """Runs each request's synchronous code in a warm thread, and returns the request's connections at its end.

    ``application = ConnectionReleaseASGI(get_asgi_application(), threads=40)``. A warm thread keeps Django's connection
    objects for the next request, while asgiref alone would start and end a thread for each request. A request gets its
    thread with its first synchronous call, and returns it when its response begins, if nothing runs in the thread and no
    connection is left in it. So streams and slow clients keep no thread. Requests beyond ``threads`` wait, first come first
    served; but one that has a connection, for which the others may be waiting, gets a thread of its own meanwhile.

    ``lifespan`` is passed to the application, and answered here if the application does not know it, as Django doesn't. At
    shutdown the threads end and the pools are closed. ``websocket`` and other types are passed through.

    :param application: the ASGI application (version 3) to wrap
    :param threads: the number of warm threads, 1 or more; default 40, as many as
        `Starlette <https://www.starlette.io/threadpool/>`_ has. A thread is started when it is first needed.
    :param replace_receivers: disconnect Django's receivers of a request's signals in this process, ``reset_queries`` and
        ``close_old_connections``, as long as they have nothing to do: ``DEBUG`` is off, no query is logged, all aliases are
        pooled, and no connection is taken outside any request. That saves a request two of three changes of threads.
        Default ``True``
    :raises ValueError: if ``threads`` is not a whole number of 1 or more
    :raises TypeError: if ``application`` is no ASGI application of version 3, but a WSGI application for instance
    :raises django.core.exceptions.ImproperlyConfigured: if the pool options of an alias are wrong
    """

    def __init__(self, application: Application, threads: int = DEFAULT_THREADS, *, replace_receivers: bool = True) -> None:
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads is {threads!r}; it must be a whole number, 1 or more")
        require_asgi(application)
        refuse_wrong_options()
        import_pool()
        asgi_wrappers.add(self)
        self.application = application
        self.threads = WarmThreads(threads)
        if replace_receivers:
            put_aside()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if receivers.are_aside:
            put_back_if_wanted()
        work = Scope(lambda: f"{scope.get('method')} {scope.get('path')}")

        def holds_connection(thread: threading.Thread | None) -> bool:
            return any(lease.thread is thread for lease in work.leases.copy())

        loan = Loan(self.threads, must_stay=holds_connection, has_connection=lambda: bool(work.leases))
        work.on_lease = loan.hurry

        async def send_and_share(message: Message) -> None:
            # Sending takes as long as the client likes, so idle connections return first, and the thread with them.
            if work.leases and work.release_idle(may_ask_server=False):
                loan.run(work.release_idle)
            loan.share()
            await send(message)

        try:
            async with compat.LentThreadContext(executor=loan):
                with work:
                    await self.application(scope, receive, send_and_share)
        finally:
            is_left = work.end(may_ask_server=False)
            loan.finish(work.end if is_left else None)
            work.on_lease = None  # the two refer to each other

    async def _live(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        is_known = False

        async def receive_for_inner() -> Message:
            nonlocal is_known
            is_known = True
            return await receive()

        async def send_of_inner(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await self._close()
            await send(message)

        try:
            await self.application(scope, receive_for_inner, send_of_inner)
        except Exception:
            if is_known:
                raise
        if not is_known:
            await self._live_alone(receive, send)

    async def _live_alone(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        await asyncio.to_thread(self.threads.close)
        await asyncio.to_thread(close_pool)
