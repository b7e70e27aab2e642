"""What strikes the workers and their server: each fault at random, and mended again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol

import MySQLdb

from devtools.server import PrivateServer, Server
from devtools.soak import ledger
from tests.relay import Relay

#: Seconds that a fault lasts, where it lasts.
SHORTEST, LONGEST = 0.5, 8.0
#: That a sudden one strikes too, at each tick.
CHANCE_OF_ANOTHER = 0.1
#: What the server and the account allow while they are short of connections: fewer than the workers want.
ALLOWED_TO_SERVER, ALLOWED_TO_ACCOUNT = 10, 4


class Worker(Protocol):
    """A worker process, as far as it matters here."""

    def order(self, what: str) -> None: ...


class Faults:
    """Strikes; ``tick`` is called all the while."""

    def __init__(
        self, server: Server, relay: Relay, workers: Sequence[Worker], chance: Random, tick: Callable[[], None]
    ) -> None:
        self.server = server
        self.relay = relay
        self.workers = workers
        self.chance = chance
        self.tick = tick
        #: These may strike in the middle of another one, too.
        self.sudden = {
            "fork": self.fork,
            "thread's death": self.death,
            "kill": self.kill,
            "drain_pool()": self.drain,
            "resize_pool()": self.resize,
        }
        self.lasting = {
            "network stalled": self.stall,
            "network stalled, then reset": self.stall_and_reset,
            "account's limit (1226)": self.limit_account,
            "server's limit (1040)": self.limit_server,
            "sessions ended early (wait_timeout)": self.shorten_sessions,
            "server read-only (1290)": self.refuse_writes,
        }
        if isinstance(server, PrivateServer):
            self.lasting |= {"restart": self.restart, "crash": self.crash}

    def strike(self) -> list[str]:
        """A fault, from its beginning to its end: its name, and the names of those that struck in the middle of it."""
        self._struck: list[str] = []
        self._strike(self.chance.choices((self.sudden, self.lasting), weights=(1, 3))[0])
        return self._struck

    def _strike(self, faults: dict[str, Callable[[], None]]) -> None:
        name = self.chance.choice(sorted(faults))
        self._struck.append(name)
        faults[name]()

    def _last(self) -> None:
        """Let the fault last, while others strike."""
        end = time.monotonic() + self.chance.uniform(SHORTEST, LONGEST)
        while time.monotonic() < end:
            self.tick()
            if self.chance.random() < CHANCE_OF_ANOTHER:
                self._strike(self.sudden)

    def fork(self) -> None:
        self.chance.choice(self.workers).order("fork")

    def death(self) -> None:
        self.chance.choice(self.workers).order("die")

    def drain(self) -> None:
        self.chance.choice(self.workers).order("drain")

    def resize(self) -> None:
        self.chance.choice(self.workers).order("resize")

    def kill(self) -> None:
        """One connection, or some, or all; where the server is down or they are gone already there is nothing to kill."""
        with suppress(MySQLdb.Error):
            victims = ledger.connections(self.server)
            for victim in self.chance.sample(victims, self.chance.randint(0, len(victims))):
                with suppress(MySQLdb.Error):
                    ledger.query(self.server, f"KILL {victim}")

    def stall(self) -> None:
        self.relay.stall(new=True)
        self._last()
        self.relay.resume()

    def stall_and_reset(self) -> None:
        self.relay.stall(new=True)
        self._last()
        self.relay.reset()
        self.relay.resume()

    def limit_account(self) -> None:
        limit = f"ALTER USER '{ledger.USER}'@'%' WITH MAX_USER_CONNECTIONS"
        self._last_between(f"{limit} {ALLOWED_TO_ACCOUNT}", f"{limit} 0")

    def limit_server(self) -> None:
        self._last_with("max_connections", ALLOWED_TO_SERVER)

    def shorten_sessions(self) -> None:
        self._last_with("wait_timeout", 1)

    def refuse_writes(self) -> None:
        self._last_with("read_only", 1)

    def _last_with(self, variable: str, value: int) -> None:
        before = ledger.query(self.server, f"SELECT @@GLOBAL.{variable}")[0][0]
        self._last_between(f"SET GLOBAL {variable} = {value}", f"SET GLOBAL {variable} = {before}")

    def _last_between(self, statement: str, undo: str) -> None:
        with ledger.asking(self.server) as ask:  # all the while: a full server may not let us in again
            ask(statement)
            try:
                self._last()
            finally:
                ask(undo)

    def restart(self) -> None:
        assert isinstance(self.server, PrivateServer)
        self.server.stop()
        self._last()
        self.server.start()

    def crash(self) -> None:
        assert isinstance(self.server, PrivateServer)
        self.server.kill()
        self._last()
        self.server.start()
