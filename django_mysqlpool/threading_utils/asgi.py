"""``PooledExecutorASGI``: a ``PooledThreadPoolExecutor`` as the default executor of an ASGI server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from weakref import WeakSet

from .executor import PooledThreadPoolExecutor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class PooledExecutorASGI:
    """Gives the event loop that serves ``application`` a ``PooledThreadPoolExecutor`` as its default executor.

    ``application = PooledExecutorASGI(get_asgi_application())``; other arguments are the executor's. When ``asgi.py`` is
    imported, a server may have no event loop yet, and ``lifespan`` is not every server's; so it is done with the first call
    in an event loop.
    """

    def __init__(self, application: Application, **arguments: Any) -> None:
        self.application = application
        self._arguments = arguments
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops.add(loop)
            loop.set_default_executor(PooledThreadPoolExecutor(**self._arguments))
        await self.application(scope, receive, send)
