"""What an event loop hands to threads, counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, MutableMapping
from typing import Any


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that remembers what it handed to threads, and to which."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        def run() -> Any:
            self.threads.add(threading.current_thread())
            return func(*args)

        asked = func.args[-1].func  # type: ignore[attr-defined]  # in asgiref's own wrapping
        self.calls.append(asked.__qualname__.removesuffix(".<locals>.sync_send"))
        return super().run_in_executor(executor, run)


def request(loop: CountingLoop, application: Any, path: str) -> None:
    """One request, as an ASGI server makes it."""
    messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": b""}]

    async def receive() -> MutableMapping[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        assert message.get("status", 200) == 200

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    loop.run_until_complete(application(scope, receive, send))
