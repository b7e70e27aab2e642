"""All that shows a pool to its operator, switched on in a worker; and what must hold between it and the pool's counts."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from django_mysqlpool import pool_statistics, signals
from django_mysqlpool.monitoring import history, process_files
from django_mysqlpool.monitoring.opentelemetry import instrument
from django_mysqlpool.monitoring.process_writer import write_process_files
from django_mysqlpool.monitoring.prometheus import PoolCollector
from django_mysqlpool.mysqlpool.backend.pools import pool_holders
from django_mysqlpool.mysqlpool.log import tell

_SIGNALS = {
    "opened": signals.connection_opened,
    "closed": signals.connection_closed,
    "waited": signals.checkout_waited,
    "timed out": signals.checkout_timed_out,
    "leak": signals.leak_detected,
    "another server": signals.server_changed,
}


class Monitors:
    """Signals, metrics, the history of the status page, the file of the process, and a log line for each checkout.

    :param folder: of the processes' files
    """

    def __init__(self, folder: Path) -> None:
        logging.getLogger("django_mysqlpool").setLevel(logging.DEBUG)  # the root's handler is told to drop most of it
        self._folder = folder
        self._lock = threading.Lock()
        #: How often each signal was received.
        self._received: Counter[str] = Counter()
        self._receivers = {name: partial(self._receive, name) for name in _SIGNALS}
        for name, signal in _SIGNALS.items():
            signal.connect(self._receivers[name])
        self._reader = InMemoryMetricReader()
        instrument(MeterProvider(metric_readers=[self._reader]))
        self._collector = PoolCollector()
        history.record()
        write_process_files(folder)

    def _receive(self, name: str, **facts: object) -> None:
        with self._lock:
            self._received[name] += 1

    def look(self) -> Iterator[str]:
        """Look at all of it; yield what is wrong."""
        for counts in pool_statistics().values():
            if counts["opened"] != sum(counts["closed"].values()) + counts["open"]:
                yield f"what was opened is neither closed nor open: {counts}"
            if counts["checkouts"] != counts["checkins"] + counts["out"]:
                yield f"what was checked out is neither back nor out: {counts}"
        pool_holders()
        self._collector.collect()
        self._reader.get_metrics_data()
        process_files.read_processes(self._folder)

    def wrong_signals(self) -> dict[str, tuple[int, int]]:
        """How often signals were sent that should have been sent as often as the second number, at most.

        (An interrupt may come when one is about to be sent.)
        """
        tell()
        (counts,) = pool_statistics().values()
        wanted = {"opened": counts["opened"], "closed": sum(counts["closed"].values())}
        with self._lock:
            sent = {name: (self._received[name], number) for name, number in wanted.items()}
        return {name: numbers for name, numbers in sent.items() if numbers[0] > numbers[1] or not all(numbers)}
