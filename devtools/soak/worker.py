"""A worker of the soak: a process whose threads make transfers, each in another way.

``python -m devtools.soak.worker FILE``; its entry of DATABASES is in the environment, and orders are lines on its standard
input, whose end is the last one.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random

import django
import psutil
from django.conf import settings
from django.db import connection, transaction

from devtools.soak.interrupts import Interrupter
from devtools.soak.records import MEMORY, VARIABLE, VIOLATION, Recorder

settings.configure(DATABASES={"default": json.loads(os.environ[VARIABLE])}, USE_TZ=True)
django.setup()

from devtools.soak import bank  # noqa: E402
from devtools.soak.monitors import Monitors  # noqa: E402
from django_mysqlpool import (  # noqa: E402
    PooledThreadPoolExecutor,
    auto_close_db,
    close_pool,
    drain_pool,
    pool_status,
    resize_pool,
)
from django_mysqlpool.mysqlpool.pool.registry import registry  # noqa: E402

#: Seconds until what has been stopped must have ended.
PATIENCE = 60
#: The C library's ``malloc_trim()``; not every one has it.
TRIM: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


class Worker:
    """The threads of this process, and what the soak orders it to do."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.bank = bank.Bank(recorder, Random())
        self.interrupter = Interrupter(recorder, self.bank.chance)
        self.record = recorder.record
        self.process = psutil.Process()
        self.descriptors = self.process.num_fds()
        self.dead: deque[object] = deque(maxlen=3)
        self.stopping = threading.Event()
        self.monitors = Monitors(folder)
        self.executor = PooledThreadPoolExecutor(thread_name_prefix="executor")
        transfer = self.bank.transfer
        ways: list[Callable[[], object]] = [auto_close_db(transfer), lambda: self.executor.submit(transfer).result()]
        ways += [partial(way, transfer) for way in (bank.closing, bank.holding, bank.requesting)]
        #: What the main thread does: what ends its work, in whatever state an interrupt has left it.
        self.main_ways = (ways[0], ways[-1])
        ways.append(partial(bank.sharing, self.bank))
        self.threads = [threading.Thread(target=self._work, args=(way,)) for way in ways * 2]
        #: ``None`` is the last one.
        self.orders: SimpleQueue[str | None] = SimpleQueue()

    def _work(self, way: Callable[[], object]) -> None:
        while not self.stopping.wait(self.bank.chance.uniform(0, bank.LONGEST_PAUSE)):
            way()

    def run(self) -> None:
        """Work, and follow the orders, until there are no more."""
        for thread in self.threads:
            thread.start()
        threading.Thread(target=self._listen, name="orders").start()
        orders = {
            "sample": self.sample,
            "fork": self.fork,
            "die": self.die,
            "drain": drain_pool,
            "resize": self.resize,
        }
        while True:
            try:
                order = self.orders.get(timeout=self.bank.chance.uniform(0, bank.LONGEST_PAUSE))
            except Empty:
                self.interrupter.call(self.bank.chance.choice(self.main_ways))
                continue
            if order is None:
                break
            orders[order]()
        self.stop()

    def _listen(self) -> None:
        rest = b""
        while data := os.read(sys.stdin.fileno(), 4096):  # (no buffer, whose lock a child would inherit)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.orders.put(line.decode())
        self.orders.put(None)

    def sample(self) -> None:
        """Tell how this process is."""
        for pool in registry.pools():
            surplus = pool.source.surplus  # of connections that were out when the pool was made smaller
            status = pool.status()
            if status["open"] > status["cap"] + surplus:
                self.record(VIOLATION, f"the cap is passed: {status}")
        for wrong in self.monitors.look():
            self.record(VIOLATION, wrong)
        TRIM(0)  # what has been freed, and is kept for later, does not count
        self.record(MEMORY, self.process.memory_info().rss)

    def resize(self) -> None:
        """Change the cap."""
        size = self.bank.chance.randint(2, 4)  # at least ``min_idle``
        resize_pool("default", pool_size=size, max_overflow=self.bank.chance.randint(0, 2))

    def die(self) -> None:
        """Let a thread end in the middle of a transaction."""
        threading.Thread(target=self.bank.begin_and_die, args=(self.dead.append,), name="mortal").start()

    def fork(self) -> None:
        """Let a child make some transfers."""
        exits_quickly = self.bank.chance.random() < 0.5
        child = os.fork()
        if child:
            threading.Thread(target=self._await, args=(child,), name=f"parent of {child}").start()
            return
        self.bank.chance.seed()
        if pool_status():
            self.record(VIOLATION, f"a child inherited {pool_status()}")
        for _ in range(3):
            auto_close_db(self.bank.transfer)()
        (os._exit if exits_quickly else sys.exit)(0)

    def _await(self, child: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                deadline += PATIENCE
                self.record(VIOLATION, f"child {child} does not end; what it does stands in the log")
                os.kill(child, signal.SIGABRT)  # faulthandler tells where its threads are
        if ended[1]:
            self.record(VIOLATION, f"child {child} ended with {os.waitstatus_to_exitcode(ended[1])}")

    def stop(self) -> None:
        """End all threads and see what is left."""
        self.stopping.set()
        self._eventually(lambda: [t.name for t in self.threads if t.is_alive()], [], "threads that do not end")
        self.executor.shutdown(wait=False)
        self.dead.clear()
        gc.collect()
        self._eventually(lambda: sum(status["out"] for status in pool_status().values()), 0, "connections out")
        self._use_all_slots()
        close_pool()
        self._eventually(self.monitors.wrong_signals, {}, "signals that were sent too often, or not at all")
        self._eventually(self.process.num_threads, 1, "threads")
        self._eventually(lambda: self.process.num_fds() - self.descriptors, 0, "descriptors more than at first")

    def _use_all_slots(self) -> None:
        """Have as many connections out at once as the cap allows."""
        cap = next(iter(pool_status().values()))["cap"]
        everybody = threading.Barrier(cap, timeout=PATIENCE)
        seen: set[tuple[int, object]] = set()

        @auto_close_db
        def use() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT CONNECTION_ID(), @soak")
                seen.add(cursor.fetchone())
                with transaction.atomic(), suppress(threading.BrokenBarrierError):
                    everybody.wait()

        threads = [threading.Thread(target=use) for _ in range(cap)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len({number for number, _ in seen}) != cap or any(left for _, left in seen):
            self.record(VIOLATION, f"at the end {cap} threads were to have a clean connection each: {seen}")

    def _eventually(self, look: Callable[[], object], wanted: object, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (seen := look()) != wanted:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                faulthandler.dump_traceback()
                self.record(VIOLATION, f"at the end {seen} {what}: {pool_status()}, {threading.enumerate()}")
                return


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger().handlers[0].setLevel(logging.INFO)
    file = Path(sys.argv[1])
    Worker(Recorder(file), file.parent).run()
