"""A relay between the driver and the server, which counts round trips and can be as bad as a network can."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

_CHUNK = 65536
# What a client says when it closes, at some time and to nobody's answer: no part of a round trip.
_QUIT = b"\x01\x00\x00\x00\x01"
# Of SO_LINGER: to close is to reset.
_AT_ONCE = struct.pack("ii", 1, 0)


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
        #: Clients that have been let wait for their first answer.
        self.held: list[socket.socket] = []
        #: How many clients left before they were answered.
        self.left = 0
        self._number_to_hold = 0
        self._stall_at: Callable[[bytes], bool] = lambda _: False
        self._has_stalled = threading.Event()
        self._pairs: set[_Pair] = set()
        self._orders: deque[tuple[Callable[[], object], threading.Event]] = deque()
        self._is_closed = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, self._obey)
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
        self._order(self._end_all)

    def lead_to(self, host: str, port: int) -> None:
        """Lead new clients to another server; what is connected to the last one stays so."""
        self._target = (host, port)

    def stall(self, *, new: bool = False) -> None:
        """Swallow what is said on the connections that are open; ``new``: and whatever a new client says."""
        self._order(self._stall)
        if new:
            self._order(lambda: self._selector.unregister(self._listener))

    def stall_at(self, is_it: Callable[[bytes], bool]) -> threading.Event:
        """Swallow the next packet of a client's that ``is_it`` says yes to, and all after it on that connection.

        Returns an event that is set when it has come.
        """
        self._has_stalled.clear()
        self._stall_at = is_it
        return self._has_stalled

    def resume(self) -> None:
        """Deliver what was swallowed, as far as somebody is left to receive it, and everything from now on."""
        self._order(self._resume)

    def reset(self) -> None:
        """Cut what is open with a reset, both ways, stalled or not."""
        self._order(self._reset)

    def hold_connects(self, number: int = 1) -> None:
        """Let the next clients wait for their first answer until ``resume()``."""
        self._number_to_hold = number

    def close(self) -> None:
        self._order(self._close)
        self._thread.join()
        for key in tuple(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        for end in (self._listener, self._waker, *self.held, *(end for pair in self._pairs for end in pair.ends)):
            end.close()
        self._selector.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _order(self, action: Callable[[], object]) -> None:
        """Have the relay's thread do it between two packets; returns when it is done."""
        done = threading.Event()
        self._orders.append((action, done))
        self._waker.send(b".")
        done.wait()

    def _obey(self) -> None:
        self._wake.recv(1)
        action, done = self._orders.popleft()
        action()
        done.set()

    def _run(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select():
                key.data()

    def _close(self) -> None:
        self._is_closed = True

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._number_to_hold:
            self._number_to_hold -= 1
            self.held.append(client)
        else:
            self._let_in(client)

    def _let_in(self, client: socket.socket) -> None:
        if _has_left(client):
            self.left += 1
            client.close()
            return
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self.connects += 1
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        self._pairs.add(pair)
        self._listen(pair)

    def _listen(self, pair: _Pair) -> None:
        client, server = pair.ends
        self._selector.register(client, selectors.EVENT_READ, lambda: self._forward(pair, client, server))
        self._selector.register(server, selectors.EVENT_READ, lambda: self._forward(pair, server, client))

    def _stall(self) -> None:
        for pair in self._pairs:
            pair.is_stalled = True
            for end in pair.ends:
                self._unregister(end)

    def _resume(self) -> None:
        for pair in tuple(self._pairs):
            if pair.is_stalled:
                pair.is_stalled = False
                self._listen(pair)
                withheld, pair.withheld = pair.withheld, b""
                if withheld:
                    self._send(pair, pair.server, withheld)
        if self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while self.held:
            self._let_in(self.held.pop())

    def _reset(self) -> None:
        for pair in self._pairs:
            for end in pair.ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._end_all()

    def _end_all(self) -> None:
        for pair in tuple(self._pairs):
            self._end(pair)

    def _unregister(self, end: socket.socket) -> None:
        if end in self._selector.get_map():
            self._selector.unregister(end)

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
        if source is pair.client and self._stall_at(data):
            self._stall_at = lambda _: False
            pair.withheld = data
            pair.is_stalled = True
            for end in pair.ends:
                self._unregister(end)
            self._has_stalled.set()
            return
        self._send(pair, target, data)

    def _send(self, pair: _Pair, target: socket.socket, data: bytes) -> None:
        try:
            target.sendall(data)
        except OSError:
            self._end(pair)

    def _end(self, pair: _Pair) -> None:
        for end in pair.ends:
            if end.fileno() != -1:
                self._unregister(end)
                end.close()
        self._pairs.discard(pair)


def _has_left(client: socket.socket) -> bool:
    """Whether a client hung up before it was answered; it speaks second, so that there is nothing else to read."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.ends = (client, server)
        self.is_stalled = False
        self.withheld = b""
        # The server speaks first: it greets, and no client has asked for that.
        self.client_spoke_last = False
