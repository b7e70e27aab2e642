"""``PooledExecutorASGI``, which makes ``PooledThreadPoolExecutor`` the default executor of an ASGI server's event loop."""

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
    """Gives the event loop of an application a :class:`~django_mysqlpool.PooledThreadPoolExecutor` as its default executor.

    ``application = PooledExecutorASGI(get_asgi_application())``. The executor is set at the first call in an event loop,
    because a server may have no event loop yet when it imports ``asgi.py``, and not every server calls ``lifespan``.

    :param application: the ASGI application (version 3) to wrap
    :param arguments: keyword arguments of ``PooledThreadPoolExecutor``, for instance ``max_workers=20``. The executor is
        made at the first call, so wrong arguments raise their errors there.
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
