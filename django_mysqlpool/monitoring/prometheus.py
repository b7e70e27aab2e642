"""The statistics of the pools for Prometheus (the extra ``prometheus``).

A scrape reads the counters that the pools keep anyway, so nothing is spent between two scrapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, chain
from typing import Any

from django_mysqlpool.mysqlpool.backend.pools import pool_statistics

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ImportError as error:
    raise ImportError(
        f"django_mysqlpool.monitoring.prometheus needs prometheus-client: install the extra 'prometheus' ({error})"
    ) from error

#: Of each kind: the metric's name, its key in the statistics, and what it says.
_GAUGES = [
    ("mysqlpool_connections_max", "cap", "The most connections that this process may have open."),
    ("mysqlpool_waiting_threads", "waiting", "Threads that wait for a connection."),
]
_COUNTERS = [
    ("mysqlpool_checkouts", "checkouts", "Connections handed out."),
    ("mysqlpool_checkins", "checkins", "Connections returned."),
    ("mysqlpool_waits", "waits", "Checkouts that had to wait for a connection."),
    ("mysqlpool_timeouts", "timeouts", "Checkouts that ended with PoolTimeout after a wait."),
    ("mysqlpool_refusals", "refusals", "Checkouts that ended with PoolTimeout at once, because of max_waiting."),
    ("mysqlpool_connections_opened", "opened", "Connections opened."),
    ("mysqlpool_connections_failed", "open_failures", "Attempts to open a connection that failed."),
    ("mysqlpool_connections_reclaimed", "reclaimed", "Abandoned connections that were reclaimed."),
    ("mysqlpool_resets", "resets", "Sessions reset."),
    ("mysqlpool_leaks", "leaks", "Connections that were out for longer than leak_after."),
]
_COUNTERS_BY_REASON = [
    ("mysqlpool_connections_closed", "closed", "Connections closed, by the reason."),
    ("mysqlpool_pins", "pins", "Connections that had to stay out between statements, by the reason."),
]
_HISTOGRAMS = [
    ("mysqlpool_wait", "wait_time", "Time until a checkout had a connection; 0 if one was ready."),
    ("mysqlpool_use", "use_time", "Time from the checkout of a connection to its checkin."),
    ("mysqlpool_connect", "connect_time", "Time that it took to open a connection."),
    ("mysqlpool_reset", "reset_time", "Time that it took to reset a session."),
]
_STATES = ("idle", "out", "opening")

#: As ``pool_statistics()`` returns them.
Statistics = Mapping[str, Mapping[str, Any]]


class PoolCollector(Collector):
    """Collects the statistics of all pools of this process when they are scraped: ``REGISTRY.register(PoolCollector())``.

    In its multiprocess mode prometheus_client collects from no collector, this one included.
    """

    def describe(self) -> list[Metric]:
        """Return the metrics without samples, which tell a registry their names."""
        return list(chain(_gauges({}), _counters({}), _histograms({})))

    def collect(self) -> list[Metric]:
        """Return the metrics of this moment, with samples of each pool."""
        statistics = pool_statistics()
        return list(chain(_gauges(statistics), _counters(statistics), _histograms(statistics)))


def _gauges(statistics: Statistics) -> Iterator[Metric]:
    info = InfoMetricFamily("mysqlpool_pool", "The aliases that a pool serves, and the server's address.", labels=["pool"])
    states = GaugeMetricFamily("mysqlpool_connections", "Connections, by their state.", labels=["pool", "state"])
    for pool, numbers in statistics.items():
        info.add_metric([pool], {"aliases": ",".join(numbers["aliases"]), "address": numbers["address"] or ""})
        for state in _STATES:
            states.add_metric([pool, state], numbers[state])
    yield info
    yield states
    for name, key, documentation in _GAUGES:
        gauge = GaugeMetricFamily(name, documentation, labels=["pool"])
        for pool, numbers in statistics.items():
            if numbers[key] is not None:  # a pool without a limit has no cap
                gauge.add_metric([pool], numbers[key])
        yield gauge


def _counters(statistics: Statistics) -> Iterator[Metric]:
    for name, key, documentation in _COUNTERS:
        counter = CounterMetricFamily(name, documentation, labels=["pool"])
        for pool, numbers in statistics.items():
            counter.add_metric([pool], numbers[key])
        yield counter
    for name, key, documentation in _COUNTERS_BY_REASON:
        counter = CounterMetricFamily(name, documentation, labels=["pool", "reason"])
        for pool, numbers in statistics.items():
            for reason, number in numbers[key].items():
                counter.add_metric([pool, reason], number)
        yield counter


def _histograms(statistics: Statistics) -> Iterator[Metric]:
    for name, key, documentation in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, documentation, labels=["pool"], unit="seconds")
        for pool, numbers in statistics.items():
            histogram.add_metric([pool], _buckets(numbers[key]), numbers[key]["sum"])
        yield histogram


def _buckets(times: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The buckets as Prometheus has them: each counts what is in the ones before it too."""
    bounds = [*map(floatToGoString, times["bounds"]), "+Inf"]
    return list(zip(bounds, accumulate(times["counts"]), strict=True))
