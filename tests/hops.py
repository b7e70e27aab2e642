"""What an event loop hands to threads, counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import MutableMapping
from functools import partial
from typing import Any


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that remembers what was called in threads for it, and in which."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        *asgirefs, asked = func.args  # in asgiref's own wrapping

        def run(*args: Any) -> Any:
            self.threads.add(threading.current_thread())
            self.calls.append(asked.func.__qualname__.removesuffix(".<locals>.sync_send"))
            return func.func(*args)

        return super().run_in_executor(executor, partial(run, *asgirefs, asked), *args)


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
