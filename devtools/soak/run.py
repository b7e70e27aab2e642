"""A run: the worker processes, the faults that strike them, and whether they recover."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from rich.progress import Progress

from devtools.lifeline import tied
from devtools.server import Server, ServerError
from devtools.soak import ledger
from devtools.soak.faults import Faults
from devtools.soak.records import VARIABLE, Records
from tests.relay import Relay

LOOK_SECONDS = 0.2
#: Seconds within which every worker makes transfers again after a fault.
RECOVERY = 60
#: Seconds until a worker that was told to stop has ended; it has its own patience with each of what it waits for.
STOP = 400
#: Memory may grow by this part, and this many bytes, from the second fifth of the samples to the last.
MEMORY_PART, MEMORY_BYTES = 0.1, 8 * 2**20
_BAD_NEWS = re.compile(r"^(Traceback|Exception ignored|Fatal Python error).*", re.MULTILINE)


class Worker:
    """A worker process, and what it has told so far."""

    def __init__(self, name: str, folder: Path, entry: dict[str, Any], release: str) -> None:
        self.name = name
        self.release = release
        self.log = folder / f"{name}.log"
        path = folder / f"{name}.records"
        path.touch()
        self.records = Records(path)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                tied([sys.executable, "-m", "devtools.soak.worker", str(path)]),
                # (Of threads that come and go, each would leave long statements' memory in an arena of its own.)
                env={**os.environ, VARIABLE: json.dumps(entry), "MALLOC_ARENA_MAX": "1"},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is not for it
            )

    def order(self, what: str) -> None:
        """See ``worker.Worker.run``."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise ServerError(f"{self.name} ended by itself: {self.log.read_text()[-3000:]}") from None

    def stop(self) -> None:
        """Have it stop its threads and look at what is left; see ``violations``."""
        assert self.process.stdin
        self.process.stdin.close()

    def violations(self) -> Iterator[str]:
        """What this worker has seen, or shown, that must not be; waits for its end."""
        try:
            if code := self.process.wait(STOP):
                yield f"exit code {code}"
        except subprocess.TimeoutExpired:
            yield "does not end"
        self.records.read_on()
        yield from self.records.violations
        yield from (f"in its log: {news[0]}" for news in _BAD_NEWS.finditer(self.log.read_text()))
        if growth := growth_of(self.records.memory):
            yield growth

    def kill(self) -> None:
        """End it in any case, with the children it has."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def growth_of(memory: list[int]) -> str:
    """What is to be said of samples of a process's memory; nothing where they are as they should be."""
    fifth = len(memory) // 5
    if not fifth:
        return ""
    early, late = median(memory[fifth : 2 * fifth]), median(memory[-fifth:])
    grown = late > early * (1 + MEMORY_PART) + MEMORY_BYTES
    return f"its memory has grown from {early / 2**20:.0f} to {late / 2**20:.0f} MiB" if grown else ""


class Soak:
    """One run."""

    def __init__(self, server: Server, relay: Relay, workers: list[Worker], chance: Random, progress: Progress) -> None:
        self.workers = workers
        self.chance = chance
        self.faults = Faults(server, relay, workers, chance, self.tick)
        self.progress = progress
        self.survived: Counter[str] = Counter()
        self.longest_recovery = 0.0
        self.violations: list[str] = []
        self._next_sample = 0.0

    def run(self, seconds: float) -> None:
        """Strike until the time is over."""
        start = time.monotonic()
        self.task = self.progress.add_task("", total=seconds)
        self._recover("the start")
        while (elapsed := time.monotonic() - start) < seconds:
            self.progress.update(self.task, completed=elapsed)
            names = self.faults.strike()
            if self._recover(" and ".join(names)):
                self.survived.update(names)

    def tick(self) -> None:
        """A moment later."""
        time.sleep(LOOK_SECONDS)
        for worker in self.workers:
            worker.records.read_on()
        if time.monotonic() > self._next_sample:
            self._next_sample = time.monotonic() + 1
            for worker in self.workers:
                worker.order("sample")
        told = f"{sum(self.survived.values())} faults, {sum(w.records.acknowledged for w in self.workers):,} transfers"
        self.progress.update(self.task, description=told)

    def _recover(self, fault: str) -> bool:
        """See each worker make transfers again."""
        begin = time.monotonic()
        behind = {worker: worker.records.acknowledged for worker in self.workers}
        while behind:
            self.tick()
            behind = {worker: count for worker, count in behind.items() if worker.records.acknowledged <= count + 10}
            if time.monotonic() - begin > RECOVERY:
                for worker in behind:
                    worker.process.send_signal(signal.SIGUSR1)  # its log tells where its threads are
                names = ", ".join(worker.name for worker in behind)
                self.violations.append(f"{names} made no transfers for {RECOVERY} s after {fault}")
                return False
        self.longest_recovery = max(self.longest_recovery, time.monotonic() - begin)
        return True

    def finish(self, server: Server) -> list[str]:
        """Stop the workers, and judge."""
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            self.violations += [f"{worker.name}: {what}" for what in worker.violations()]
        if left := ledger.connections(server):
            self.violations.append(f"{len(left)} connections are left on the server")
        self.violations += ledger.violations(server, [worker.records for worker in self.workers])
        return self.violations
