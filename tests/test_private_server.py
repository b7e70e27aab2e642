"""The private server of the tests: ``devtools.server``."""

from __future__ import annotations

import socket

import pytest

from devtools.server import PrivateServer

pytestmark = pytest.mark.server


def test_it_takes_another_port_if_its_own_is_taken_meanwhile():
    private = PrivateServer()
    chosen = private.port
    with socket.create_server(("127.0.0.1", chosen)), private:
        assert private.port != chosen
        chosen = private.port
        private.restart()
        assert private.port == chosen
        private.connect().close()
