"""A relay between the driver and the server, which counts round trips."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

_CHUNK = 65536
# What a client says when it closes, at some time and to nobody's answer: no part of a round trip.
_QUIT = b"\x01\x00\x00\x00\x01"


class Relay(AbstractContextManager["Relay"]):
    """Listens on a port of its own and passes everything on to ``host:port``, in a thread, until it is closed.

    A round trip begins where a client speaks after the server has spoken; that holds for TLS as well, and for an answer
    in many packets.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        self.connects = 0
        self._pairs: set[_Pair] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def count(self, action: Callable[[], object]) -> int:
        """How many round trips ``action`` takes."""
        before = self.round_trips
        action()
        return self.round_trips - before

    def redirect(self, host: str, port: int) -> None:
        """Lead to another server from now on; what is connected to the last one is cut, as by a failover."""
        self._target = (host, port)
        cut = tuple(self._pairs)
        for pair in cut:
            # The relay's own thread sees the end and closes both.
            pair.server.shutdown(socket.SHUT_RDWR)
        while not self._pairs.isdisjoint(cut):
            pass

    def close(self) -> None:
        self._waker.send(b".")
        self._thread.join()
        for key in tuple(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._waker.close()
        self._selector.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._target)
        self.connects += 1
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        self._pairs.add(pair)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._forward(pair, client, server))
        self._selector.register(server, selectors.EVENT_READ, lambda: self._forward(pair, server, client))

    def _forward(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end(pair)
            return
        if source is pair.client and not pair.client_spoke_last and data != _QUIT:
            self.round_trips += 1
        pair.client_spoke_last = source is pair.client
        try:
            target.sendall(data)
        except OSError:
            self._end(pair)

    def _end(self, pair: _Pair) -> None:
        for end in (pair.client, pair.server):
            if end.fileno() != -1:
                self._selector.unregister(end)
                end.close()
        self._pairs.discard(pair)


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        # The server speaks first: it greets, and no client has asked for that.
        self.client_spoke_last = False
