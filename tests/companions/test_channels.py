"""Channels: what a websocket's consumer takes goes back after each call, while the socket stays open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.companions import needs
from tests.sites import Site

needs("channels", "websockets")

from websockets.sync.client import ClientConnection, connect  # noqa: E402

pytestmark = pytest.mark.companion


@pytest.fixture(scope="module")
def site(serve_companion) -> Site:
    return serve_companion("channels")


@pytest.fixture
def open_socket(site) -> Iterator:
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(connect(f"ws://127.0.0.1:{site.port}/{path}/"))


def ask(socket: ClientConnection, message: str) -> object:
    socket.send(json.dumps(message))
    return json.loads(socket.recv(timeout=60))


@pytest.mark.parametrize("path", ["asynchronous", "orm-itself", "synchronous"])
def test_open_sockets_hold_no_connection(site, open_socket, path):
    """Twelve sockets that stay open, over two connections."""
    sockets = [open_socket(path) for _ in range(12)]
    with ThreadPoolExecutor(12) as executor:
        for _ in range(5):
            assert len(list(executor.map(lambda socket: ask(socket, "sleep"), sockets))) == 12
    assert site.out() == 0


def test_what_a_call_leaves_the_next_does_not_find(site, open_socket):
    first, second = open_socket("asynchronous"), open_socket("asynchronous")
    assert ask(first, "leave open") == [1, False]
    for socket in (first, second) * 3:
        assert ask(socket, "look") == [0, True]
    assert ask(first, "fail") == "the message fails"
    assert ask(second, "look") == [0, True]
    assert site.out() == 0


def test_requests_beside_sockets(site, open_socket):
    """Both share the pool; a request is answered while sockets are open."""
    sockets = [open_socket("asynchronous") for _ in range(6)]
    with ThreadPoolExecutor(6) as executor:
        asked = [executor.submit(ask, socket, "sleep") for socket in sockets * 1]
        assert site.storm(["/count/", "/count-async/", "/write/"] * 10) == {200: 30}
        assert [future.result() for future in asked] == [[0, True]] * 6
    assert site.out() == 0
