"""The metrics of the pools for OpenTelemetry (the extra ``opentelemetry``).

The instruments are those of the semantic conventions for the connection pools of database clients. A collection reads the
numbers of connections from the pools. Times are different: OpenTelemetry has no histogram that reads its values when it is
collected, and its SDK for Python takes no metrics from elsewhere (it has no ``MetricProducer``). So a time is noted when it
is known, in a fraction of a microsecond, and the maintenance thread records it, which takes several. Each time is recorded
as it was, so views with other buckets, or an exponential histogram, work as they do for any histogram.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import django_mysqlpool
from django_mysqlpool.mysqlpool.backend.pools import pool_statistics
from django_mysqlpool.mysqlpool.pool import events
from django_mysqlpool.mysqlpool.pool.history import BOUNDS
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from django_mysqlpool.mysqlpool.pool.registry import registry

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter_provider
except ImportError as error:
    raise ImportError(
        f"django_mysqlpool.monitoring.opentelemetry needs opentelemetry-api: install the extra 'opentelemetry' ({error})"
    ) from error

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.pool import Pool

#: The version of the conventions that the instruments follow.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: How many times are kept until they are recorded, which happens every second.
MOST_TIMES = 100_000

_PREFIX = "db.client.connection."
_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
#: The states of the conventions, and their keys in the statistics.
_STATES = {"idle": "idle", "used": "out"}


class _Waited(threading.local):
    """How long the checkout that the calling thread is in the middle of has taken so far."""

    seconds = 0.0


class _Times:
    """The histograms, and the times that are yet to be recorded in them."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, description: str) -> Histogram:
            # The conventions name no buckets for these; they name these for db.client.operation.duration.
            return meter.create_histogram(_PREFIX + name, "s", description, explicit_bucket_boundaries_advisory=BOUNDS)

        self._create_time = histogram("create_time", "The time it took to create a new connection.")
        self._wait_time = histogram("wait_time", "The time it took to obtain an open connection from the pool.")
        self._use_time = histogram("use_time", "The time between borrowing a connection and returning it to the pool.")
        self._waited = _Waited()
        #: Each with its histogram and the name of its pool.
        self._noted: deque[tuple[Histogram, str, float]] = deque(maxlen=MOST_TIMES)
        os.register_at_fork(after_in_child=self._noted.clear)  # the parent records it

    def start(self) -> None:
        events.observe(self._note_opened, "opened")
        events.observe(self._note_wait, "wait")
        events.observe(self._note_checkout, "checkout")
        events.observe(self._note_checkin, "checkin")
        maintenance.after_round.append(self.record)

    def stop(self) -> None:
        for observer in (self._note_opened, self._note_wait, self._note_checkout, self._note_checkin):
            events.ignore(observer)
        maintenance.after_round.remove(self.record)
        self.record()

    # Called in the middle of a checkout or a checkin: a histogram's locks and buckets would take too long there.

    def _note_opened(self, _: str, pool: Any, facts: Mapping[str, Any]) -> None:
        self._waited.seconds = facts["seconds"]
        self._noted.append((self._create_time, pool.name, facts["seconds"]))

    def _note_wait(self, _: str, pool: Any, facts: Mapping[str, Any]) -> None:
        self._waited.seconds = facts["seconds"]  # what it took to open a connection is in it

    def _note_checkout(self, _: str, pool: Any, facts: Mapping[str, Any]) -> None:
        seconds = self._waited.seconds
        if seconds:
            self._waited.seconds = 0.0
        self._noted.append((self._wait_time, pool.name, seconds))

    def _note_checkin(self, _: str, pool: Any, facts: Mapping[str, Any]) -> None:
        self._noted.append((self._use_time, pool.name, facts["seconds"]))

    def record(self) -> None:
        """Record what was noted."""
        while self._noted:
            try:
                histogram, pool, seconds = self._noted.popleft()
            except IndexError:  # another thread records too
                break
            histogram.record(seconds, {_POOL_NAME: pool})


class _Instruments:
    """The instruments of one meter provider. It can take none back, so they are made once and observe nothing while off."""

    def __init__(self, provider: MeterProvider) -> None:
        self._is_on = False
        meter = provider.get_meter("django_mysqlpool", django_mysqlpool.__version__, SCHEMA_URL)
        meter.create_observable_up_down_counter(
            _PREFIX + "count",
            [self._observe_states],
            "{connection}",
            "The number of connections that are currently in state described by the `state` attribute.",
        )
        meter.create_observable_up_down_counter(
            _PREFIX + "idle.max",
            [partial(self._observe_limit, _most_idle)],
            "{connection}",
            "The maximum number of idle open connections allowed.",
        )
        meter.create_observable_up_down_counter(
            _PREFIX + "idle.min",
            [partial(self._observe_limit, _fewest_idle)],
            "{connection}",
            "The minimum number of idle open connections allowed.",
        )
        meter.create_observable_up_down_counter(
            _PREFIX + "max",
            [partial(self._observe, "cap")],
            "{connection}",
            "The maximum number of open connections allowed.",
        )
        meter.create_observable_up_down_counter(
            _PREFIX + "pending_requests",
            [partial(self._observe, "waiting")],
            "{request}",
            "The number of current pending requests for an open connection.",
        )
        meter.create_observable_counter(
            _PREFIX + "timeouts",
            [partial(self._observe, "timeouts")],
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )
        self._times = _Times(meter)

    def start(self) -> None:
        if not self._is_on:
            self._is_on = True
            self._times.start()

    def stop(self) -> None:
        if self._is_on:
            self._is_on = False
            self._times.stop()

    # A collection calls these first, and reads the histograms afterwards. A limit that does not exist is not observed.

    def _observe_states(self, _: CallbackOptions) -> Iterator[Observation]:
        self._times.record()
        if self._is_on:
            for pool, numbers in pool_statistics().items():
                for state, key in _STATES.items():
                    yield Observation(numbers[key], {_POOL_NAME: pool, _STATE: state})

    def _observe(self, key: str, _: CallbackOptions) -> Iterator[Observation]:
        if self._is_on:
            for pool, numbers in pool_statistics().items():
                if numbers[key] is not None:
                    yield Observation(numbers[key], {_POOL_NAME: pool})

    def _observe_limit(self, limit: Callable[[Pool], int | None], _: CallbackOptions) -> Iterator[Observation]:
        if self._is_on:
            for pool in registry.pools():
                number = limit(pool)
                if number is not None:
                    yield Observation(number, {_POOL_NAME: pool.name})


def _most_idle(pool: Pool) -> int | None:
    # SQLAlchemy's own pools close an overflow connection at its checkin; ours stay until idle_timeout.
    return pool.source.cap if pool.source.has_queue else pool.source.size()


def _fewest_idle(pool: Pool) -> int:
    return getattr(pool.source, "min_idle", 0)


#: Of the providers so far. A process has one as a rule.
_instruments: dict[MeterProvider, _Instruments] = {}


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Emit the metrics of all pools of this process. Where they are emitted already, nothing changes.

    Times are recorded from now on. A forked child emits them too.

    :param meter_provider: the provider of the meter; default ``None``: the global one of ``opentelemetry.metrics``
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if provider not in _instruments:
        _instruments[provider] = _Instruments(provider)
    _instruments[provider].start()


def uninstrument() -> None:
    """End what :func:`instrument` began. Recorded times stay in the histograms: OpenTelemetry can't remove them."""
    for instruments in list(_instruments.values()):
        instruments.stop()
