"""``django_mysqlpool.monitoring.opentelemetry``: what the SDK's reader collects, and what the conventions say."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from django.db import connections
from packaging.version import Version

from django_mysqlpool import PoolTimeout, hold_connection, pool_statistics
from django_mysqlpool.mysqlpool.pool import events
from django_mysqlpool.mysqlpool.pool.history import BOUNDS
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from tests.companions import needs
from tests.helpers import ask, eventually, hold_at_once, status_of
from tests.pages import block, table

needs("opentelemetry.sdk")

from opentelemetry import metrics  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View  # noqa: E402
from opentelemetry.semconv._incubating.attributes import db_attributes  # noqa: E402
from opentelemetry.semconv._incubating.metrics import db_metrics  # noqa: E402
from opentelemetry.semconv.schemas import Schemas  # noqa: E402

from django_mysqlpool.monitoring.opentelemetry import SCHEMA_URL, instrument, uninstrument  # noqa: E402

pytestmark = pytest.mark.companion

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


class Collected:
    """The metrics of our meter that a reader collects."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        data = reader.get_metrics_data()
        scopes = [] if data is None else [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        self.scopes = [scope for scope in scopes if scope.scope.name == "django_mysqlpool"]
        self.metrics = {metric.name: metric for scope in self.scopes for metric in scope.metrics}

    def point(self, name: str, wrapper: Any, **state: str) -> Any:
        wanted = {POOL_NAME: wrapper.pool.name, **({STATE: state["state"]} if state else {})}
        for point in self.metrics[name].data.data_points if name in self.metrics else ():
            if dict(point.attributes) == wanted:
                return point
        return None

    def value(self, name: str, wrapper: Any, **state: str) -> Any:
        point = self.point(name, wrapper, **state)
        return None if point is None else point.value


@pytest.fixture
def make_reader() -> Iterator[Callable[..., InMemoryMetricReader]]:
    """Instruments the pools for a provider of its own, and reads it."""
    providers = []

    def make(**arguments: Any) -> InMemoryMetricReader:
        reader = InMemoryMetricReader()
        providers.append(MeterProvider(metric_readers=[reader], **arguments))
        instrument(providers[-1])
        return reader

    yield make
    uninstrument()
    for provider in providers:
        provider.shutdown()


@pytest.fixture
def reader(make_reader) -> InMemoryMetricReader:
    return make_reader()


def test_the_connections_of_a_pool(make_alias, reader, observer):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 1, "min_idle": 1, "release": "request"})
    hold_at_once(wrapper.alias, 2)
    ask(wrapper, "SELECT 1")
    collected = Collected(reader)
    assert collected.value("db.client.connection.count", wrapper, state="used") == 1
    assert collected.value("db.client.connection.count", wrapper, state="idle") == 1
    assert len(observer.connections_of(wrapper.settings_dict["USER"])) == 2
    assert collected.value("db.client.connection.max", wrapper) == 2
    assert collected.value("db.client.connection.idle.max", wrapper) == 2
    assert collected.value("db.client.connection.idle.min", wrapper) == 1
    assert collected.value("db.client.connection.pending_requests", wrapper) == 0
    assert collected.value("db.client.connection.timeouts", wrapper) == 0
    assert collected.point("db.client.connection.create_time", wrapper).count == 2
    assert collected.point("db.client.connection.use_time", wrapper).count == 2


def test_a_wait_and_a_timeout(make_alias, reader):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 30, "release": "request"})
    with hold_connection(wrapper.alias), ThreadPoolExecutor(1) as executor:
        ask(wrapper, "SELECT 1")
        waiting = executor.submit(ask_and_return, wrapper.alias)
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
        assert Collected(reader).value("db.client.connection.pending_requests", wrapper) == 1
        wrapper.close()
        waiting.result(timeout=60)
    point, counts = Collected(reader).point("db.client.connection.wait_time", wrapper), pool_statistics()
    assert point.count == counts[wrapper.pool.name]["wait_time"]["count"] == 2
    assert 0 < point.sum <= counts[wrapper.pool.name]["wait_time"]["sum"]

    hurried = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.05, "release": "request"})
    ask(hurried, "SELECT 1")
    with ThreadPoolExecutor(1) as executor, pytest.raises(PoolTimeout):
        executor.submit(ask_and_return, hurried.alias).result(timeout=60)
    assert Collected(reader).value("db.client.connection.timeouts", hurried) == 1


def ask_and_return(alias: str, sql: str = "SELECT 1") -> None:
    with closing(connections[alias]) as own:
        ask(own, sql)


def test_times_are_recorded_as_they_were(make_alias, reader):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "release": "request"})
    for seconds in (0, 0.02, 0.2):
        ask_and_return(wrapper.alias, f"SELECT SLEEP({seconds})")
    point = Collected(reader).point("db.client.connection.use_time", wrapper)
    times = pool_statistics()[wrapper.pool.name]["use_time"]
    assert point.explicit_bounds == BOUNDS
    assert list(point.bucket_counts) == times["counts"]
    assert point.count == 3
    assert point.sum == pytest.approx(times["sum"])
    assert point.max >= 0.2


def test_a_view_may_have_other_buckets(make_alias, make_reader):
    view = View(
        instrument_name="db.client.connection.use_time", aggregation=ExplicitBucketHistogramAggregation(boundaries=[0.45])
    )
    reader, wrapper = make_reader(views=[view]), make_alias(pool={"release": "request"})
    for seconds in (0, 0.5):
        ask_and_return(wrapper.alias, f"SELECT SLEEP({seconds})")
    assert list(Collected(reader).point("db.client.connection.use_time", wrapper).bucket_counts) == [1, 1]


def test_it_adds_up_under_load(make_alias, reader):
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 1, "release": "request"}, at_most=3)
    is_over = threading.Event()

    def work() -> int:
        rounds = 0
        while not is_over.is_set():
            ask_and_return(wrapper.alias)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(8) as executor:
        working = [executor.submit(work) for _ in range(8)]
        for _ in range(30):
            collected = Collected(reader)
            number = sum(
                collected.value("db.client.connection.count", wrapper, state=state) or 0 for state in ("idle", "used")
            )
            assert number <= 3
        is_over.set()
        rounds = sum(future.result(timeout=60) for future in working)
    # The maintenance thread may have taken the last ones, and have yet to record them.
    eventually(lambda: Collected(reader).point("db.client.connection.use_time", wrapper).count, lambda n: n == rounds)


def test_the_maintenance_thread_records_without_a_collection(make_alias, make_reader, monkeypatch):
    make_reader()
    noted = noted_by_one()
    ask_and_return(make_alias(pool={"release": "request"}).alias)
    eventually(lambda: len(noted), lambda number: number == 0)


def noted_by_one() -> Any:
    return times_of_one()._noted


def observing(*kinds: str) -> list[Any]:
    """The observers of ours; other modules have theirs."""
    wanted = kinds or events.observers
    return [found for kind in wanted for found in events.observers[kind] if found.__module__ == instrument.__module__]


def times_of_one() -> Any:
    """The times of the one provider that the pools are instrumented for."""
    (observer,) = observing("checkin")
    return observer.__self__


def test_a_checkin_waits_for_no_meter(make_alias, reader):
    """It notes the time, which takes a fraction of what recording it does."""
    pool = make_alias().pool
    (note,) = observing("checkin")
    facts, histogram = {"seconds": 0.01}, times_of_one()._use_time
    to_note = min(timeit.repeat(lambda: note("checkin", pool, facts), number=1000, repeat=10))
    to_record = min(timeit.repeat(lambda: histogram.record(0.01, {POOL_NAME: pool.name}), number=1000, repeat=10))
    assert to_note < to_record / 5


def test_a_pool_without_a_limit_has_no_maximum(make_alias, reader):
    wrapper = make_alias(pool={"pool_size": 0})
    ask(wrapper, "SELECT 1")
    collected = Collected(reader)
    assert collected.value("db.client.connection.max", wrapper) is None
    assert collected.value("db.client.connection.count", wrapper, state="used") is not None


class TestInstrumenting:
    def test_twice_is_once(self, make_alias):
        reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[reader])
        for _ in range(2):
            instrument(provider)
        assert {len(observing(kind)) for kind in events.observers} == {0, 1}
        wrapper = make_alias(pool={"release": "request"})
        ask_and_return(wrapper.alias)
        assert Collected(reader).point("db.client.connection.use_time", wrapper).count == 1
        uninstrument()
        provider.shutdown()

    def test_nothing_is_left_of_it(self, make_alias):
        before = len(maintenance.after_round)
        reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[reader])
        instrument(provider)
        wrapper = make_alias(pool={"release": "request"})
        ask_and_return(wrapper.alias)
        uninstrument()
        uninstrument()
        assert len(maintenance.after_round) == before
        assert not observing()
        ask_and_return(wrapper.alias)
        collected = Collected(reader)
        assert collected.point("db.client.connection.use_time", wrapper).count == 1
        assert collected.value("db.client.connection.count", wrapper, state="idle") is None
        instrument(provider)
        ask_and_return(wrapper.alias)
        collected = Collected(reader)
        assert collected.point("db.client.connection.use_time", wrapper).count == 2
        assert collected.value("db.client.connection.count", wrapper, state="idle") == 1
        uninstrument()
        provider.shutdown()

    def test_a_provider_that_nobody_else_keeps(self):
        instrument(MeterProvider(shutdown_on_exit=False))
        gc.collect()
        assert observing()
        uninstrument()
        assert not observing()

    def test_the_global_provider_is_the_default(self, monkeypatch, make_alias):
        reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[reader])
        monkeypatch.setattr("django_mysqlpool.monitoring.opentelemetry.get_meter_provider", lambda: provider)
        instrument()
        wrapper = make_alias()
        ask(wrapper, "SELECT 1")
        assert Collected(reader).value("db.client.connection.max", wrapper) == status_of(wrapper)["cap"]
        uninstrument()
        provider.shutdown()

    def test_without_an_sdk_it_costs_and_shows_nothing(self, make_alias):
        """The API alone has a provider that drops everything."""
        provider = metrics.NoOpMeterProvider()
        instrument(provider)
        ask_and_return(make_alias().alias)
        uninstrument()
        assert not observing()


def test_a_child_records_its_own_times_only(make_alias, make_reader):
    reader, wrapper = make_reader(), make_alias(pool={"release": "request"})
    noted = noted_by_one()
    noted.append((times_of_one()._use_time, wrapper.pool.name, 1.0))

    def recorded() -> int:
        point = Collected(reader).point("db.client.connection.use_time", wrapper)
        return point.count if point else 0

    child = os.fork()
    if not child:
        number = -1
        try:
            inherited = 0 if noted else recorded()  # the parent may have recorded it meanwhile
            ask_and_return(wrapper.alias)
            number = recorded() - inherited
        finally:
            os._exit(number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    eventually(recorded, lambda number: number == 1)


#: By the name of each metric: the function that asks a meter for its instrument.
CREATE = {
    getattr(db_metrics, name): getattr(db_metrics, f"create_{name.lower()}")
    for name in vars(db_metrics)
    if name.startswith("DB_CLIENT_CONNECTION_")
}


class TestTheConventions:
    """The instruments, compared with what opentelemetry-semantic-conventions has generated from them."""

    @staticmethod
    def made() -> dict[str, tuple[str, str, str]]:
        """Kind, unit and description of each instrument, as they are asked of a meter."""
        found = {}

        class Recording(metrics.NoOpMeter):
            def _note(self, kind: str, name: str, unit: str, description: str) -> None:
                found[name] = kind, unit, description

            def create_observable_counter(self, name, callbacks=None, unit="", description=""):
                self._note("ObservableCounter", name, unit, description)

            def create_observable_up_down_counter(self, name, callbacks=None, unit="", description=""):
                self._note("ObservableUpDownCounter", name, unit, description)

            def create_histogram(self, name, unit="", description="", **_):
                self._note("Histogram", name, unit, description)
                return metrics.NoOpHistogram(name)

        class Provider(metrics.MeterProvider):
            def get_meter(self, name, version=None, schema_url=None, attributes=None) -> metrics.Meter:
                assert schema_url == SCHEMA_URL
                return Recording(name)

        instrument(Provider())
        uninstrument()
        return found

    def test_all_instruments_of_the_conventions_are_there_and_no_other(self):
        assert set(self.made()) == set(CREATE)

    def test_kinds_units_and_descriptions(self):
        asked = {}

        class Asked:
            def __getattr__(self, create):
                def note(name, unit, description):
                    asked[name] = create.removeprefix("create_"), unit, description

                return note

        for create in CREATE.values():
            create(Asked())
        kinds = {"ObservableUpDownCounter": "up_down_counter", "ObservableCounter": "counter", "Histogram": "histogram"}
        assert {name: (kinds[kind], *rest) for name, (kind, *rest) in self.made().items()} == asked

    def test_attributes_and_states(self):
        assert db_attributes.DB_CLIENT_CONNECTION_POOL_NAME == POOL_NAME
        assert db_attributes.DB_CLIENT_CONNECTION_STATE == STATE
        assert {state.value for state in db_attributes.DbClientConnectionStateValues} == {"idle", "used"}

    def test_the_version_is_one_of_the_conventions(self):
        known = [schema.value for schema in Schemas]
        if Version(known[-1].rpartition("/")[2]) < Version(SCHEMA_URL.rpartition("/")[2]):
            pytest.skip(f"what is installed ends with {known[-1]}")
        assert SCHEMA_URL in known

    def test_the_table_of_the_page(self):
        """``docs/monitoring.md``."""
        kinds = {"ObservableUpDownCounter": "UpDownCounter", "ObservableCounter": "Counter", "Histogram": "Histogram"}
        emitted = {name: (kinds[kind], unit) for name, (kind, unit, _) in self.made().items()}
        assert {name: (kind, unit) for name, kind, unit, _ in table("monitoring.md", "OpenTelemetry")} == emitted


def test_the_code_of_the_page(make_alias, monkeypatch):
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr("django_mysqlpool.monitoring.opentelemetry.get_meter_provider", lambda: provider)
    exec(block("monitoring.md", "OpenTelemetry", "python"), {})
    ask(wrapper := make_alias(), "SELECT 1")
    assert Collected(reader).value("db.client.connection.max", wrapper)
    uninstrument()
    provider.shutdown()


def test_it_names_the_extra_that_it_needs():
    """Where opentelemetry-api is not installed."""
    code = "import sys; sys.modules['opentelemetry'] = None; import django_mysqlpool.monitoring.opentelemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: django_mysqlpool.monitoring.opentelemetry needs opentelemetry-api")
    assert "the extra 'opentelemetry'" in last
