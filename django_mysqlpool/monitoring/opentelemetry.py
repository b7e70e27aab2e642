"""The metrics of the pools for OpenTelemetry (the extra ``opentelemetry``).

The instruments are those of the semantic conventions for the connection pools of database clients. A collection reads the
numbers of connections from the pools. Times are different: OpenTelemetry has no histogram that reads its values when it is
collected, and its SDK for Python takes no metrics from elsewhere (it has no ``MetricProducer``). So a time is noted when it
is known, in a tenth of a microsecond, and the maintenance thread records it, which takes several. Each time is recorded as
it was, so views with other buckets, or an exponential histogram, work as they do for any histogram.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import django_mysqlpool
from django_mysqlpool.mysqlpool.backend.pools import pool_statistics
from django_mysqlpool.mysqlpool.pool.events import observers
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation, get_meter_provider
except ImportError as error:
    raise ImportError(
        f"django_mysqlpool.monitoring.opentelemetry needs opentelemetry-api: install the extra 'opentelemetry' ({error})"
    ) from error

#: The version of the conventions that the instruments follow.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: Seconds. The conventions name none for these histograms; they name these for ``db.client.operation.duration``.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
#: How many times are kept until they are recorded, which happens every second.
MOST_TIMES = 100_000

_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
#: The states of the conventions, and their keys in the statistics.
_STATES = {"idle": "idle", "used": "out"}

#: Name, key in the statistics, unit and description. What has no limit is not observed.
_NUMBERS = [
    ("db.client.connection.idle.max", "idle_max", "{connection}", "The maximum number of idle open connections allowed."),
    ("db.client.connection.idle.min", "idle_min", "{connection}", "The minimum number of idle open connections allowed."),
    ("db.client.connection.max", "cap", "{connection}", "The maximum number of open connections allowed."),
    (
        "db.client.connection.pending_requests",
        "waiting",
        "{request}",
        "The number of current pending requests for an open connection.",
    ),
]
#: Name, the event that tells the time, and description.
_TIMES = [
    ("db.client.connection.create_time", "opened", "The time it took to create a new connection."),
    ("db.client.connection.wait_time", "wait", "The time it took to obtain an open connection from the pool."),
    ("db.client.connection.use_time", "checkin", "The time between borrowing a connection and returning it to the pool."),
]


class _Instruments:
    """The instruments of one meter provider. It can take none back, so they are made once and observe nothing while off."""

    def __init__(self, provider: MeterProvider) -> None:
        self.is_on = False
        #: What was noted and is yet to be recorded: the histogram, the pool's name, and seconds.
        self._noted: deque[tuple[Histogram, str, float]] = deque(maxlen=MOST_TIMES)
        os.register_at_fork(after_in_child=self._noted.clear)  # the parent records it
        meter = provider.get_meter("django_mysqlpool", django_mysqlpool.__version__, SCHEMA_URL)
        meter.create_observable_up_down_counter(
            "db.client.connection.count",
            [self._observe_states],
            unit="{connection}",
            description="The number of connections that are currently in state described by the `state` attribute.",
        )
        for name, key, unit, description in _NUMBERS:
            meter.create_observable_up_down_counter(name, [partial(self._observe, key)], unit=unit, description=description)
        meter.create_observable_counter(
            "db.client.connection.timeouts",
            [partial(self._observe, "timeouts")],
            unit="{timeout}",
            description="The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )
        self._histograms = {
            event: meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, event, description in _TIMES
        }

    def start(self) -> None:
        if not self.is_on:
            self.is_on = True
            observers.append(self._note)
            maintenance.after_round.append(self._record)

    def stop(self) -> None:
        if self.is_on:
            self.is_on = False
            observers.remove(self._note)
            maintenance.after_round.remove(self._record)
            self._record()

    def _note(self, event: str, pool: Any, facts: Mapping[str, Any]) -> None:
        """Note a time, in the thread that checks a connection out or in: a histogram's locks and buckets take too long."""
        histogram = self._histograms.get(event)
        if histogram is not None:
            self._noted.append((histogram, pool.name, facts["seconds"]))

    def _record(self) -> None:
        """Record what was noted; by the maintenance thread, and before a collection."""
        while self._noted:
            try:
                histogram, pool, seconds = self._noted.popleft()
            except IndexError:  # another thread records too
                break
            histogram.record(seconds, {_POOL_NAME: pool})

    # A collection calls these first, and reads the histograms afterwards.

    def _observe_states(self, _: CallbackOptions) -> Iterator[Observation]:
        self._record()
        for pool, numbers in self._statistics():
            for state, key in _STATES.items():
                yield Observation(numbers[key], {_POOL_NAME: pool, _STATE: state})

    def _observe(self, key: str, _: CallbackOptions) -> Iterator[Observation]:
        for pool, numbers in self._statistics():
            if numbers[key] is not None:
                yield Observation(numbers[key], {_POOL_NAME: pool})

    def _statistics(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.is_on:
            yield from pool_statistics().items()


_instruments: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Emit the metrics of all pools of this process. Where they are emitted already, nothing changes.

    Times are recorded from now on. Call it in each process that has a pool; after a fork, if the process forks.

    :param meter_provider: the provider of the meter; default ``None``: the global one of ``opentelemetry.metrics``
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if provider not in _instruments:
        _instruments[provider] = _Instruments(provider)
    _instruments[provider].start()


def uninstrument() -> None:
    """End what :func:`instrument` began. What was recorded is still collected, as OpenTelemetry can't take it back."""
    for instruments in list(_instruments.values()):
        instruments.stop()
