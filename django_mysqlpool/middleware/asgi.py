"""``ConnectionReleaseASGI``: wraps an ASGI application, Django's or any other that uses the ORM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from django_mysqlpool.mysqlpool.registry import close_pool
from django_mysqlpool.mysqlpool.scope import Scope

from .threads import Loan, WarmThreads

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: As many as Starlette gives its synchronous endpoints (anyio's default limiter).
DEFAULT_THREADS = 40


class ConnectionReleaseASGI:
    """Lends each request a warm thread for its synchronous code, and gives its connections back at its end.

    ``application = ConnectionReleaseASGI(get_asgi_application(), threads=40)``. A thread keeps Django's connection objects
    from request to request, where asgiref would start and end a thread for each. It is lent with the first synchronous call
    of a request, and goes to the next request when the response begins and nothing runs in it: streams and slow clients
    keep none. More requests than ``threads`` wait their turn.

    ``lifespan`` is answered here where the application knows none, as Django's; at shutdown the threads end and the pools
    are closed. ``websocket`` and anything else is passed through.
    """

    def __init__(self, application: Application, threads: int = DEFAULT_THREADS) -> None:
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads is {threads!r}; it must be a whole number, 1 or more")
        self.application = application
        self.threads = WarmThreads(threads)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self.application(scope, receive, send)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        work = Scope(lambda: f"{scope.get('method')} {scope.get('path')}")

        def holds_connection(thread: threading.Thread | None) -> bool:
            return any(lease.thread is thread for lease in work.leases.copy())

        loan = Loan(self.threads, must_stay=holds_connection)

        async def send_and_share(message: Message) -> None:
            # Sending may take as long as the client likes: what is idle goes back first, and the thread with it.
            if work.leases and work.release_idle(may_ask_server=False):
                loan.submit(work.release_idle)
            loan.share()
            await send(message)

        try:
            async with _lent(loan):
                with work:
                    await self.application(scope, receive, send_and_share)
        finally:
            is_left = work.end(may_ask_server=False)
            loan.finish(work.end if is_left else None)

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


@asynccontextmanager
async def _lent(loan: Loan) -> AsyncIterator[None]:
    """Let thread-sensitive code run in the loan's thread."""
    if sys.version_info >= (3, 11):
        async with ThreadSensitiveContext(executor=loan):
            yield
    else:
        # asgiref 3.13, the first to take an executor, is for Python 3.11.
        context = ThreadSensitiveContext()
        async with context:
            SyncToAsync.context_to_thread_executor[context] = loan
            yield
