"""A look at a driver's socket leaves it as it was."""

from __future__ import annotations

import os
import socket

import pytest

from django_mysqlpool.mysqlpool.drivers.sockets import peer_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("default", [None, 5.0])
def test_the_address_of_its_server(default):
    """Also where a site has set a default timeout, with which Python makes each socket non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        socket.setdefaulttimeout(default)
        try:
            assert peer_of(client.fileno()) == "{}:{}".format(*server.getsockname())
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(client.fileno())


def test_neither_a_nameless_nor_a_closed_one_has_an_address():
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left.fileno()) is None
    assert peer_of(left.fileno()) is None
