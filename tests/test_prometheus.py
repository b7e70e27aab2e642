"""``django_mysqlpool.monitoring.prometheus``: what a scrape finds, and that it adds up with what was done to the server."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from django_mysqlpool import PoolTimeout, hold_connection, pool_statistics
from tests.companions import needs
from tests.helpers import ask, eventually, hold_at_once, status_of

needs("prometheus_client")

import prometheus_client.parser  # noqa: E402
from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics  # noqa: E402

from django_mysqlpool.monitoring.prometheus import PoolCollector  # noqa: E402

pytestmark = pytest.mark.companion

PLAIN, OPENMETRICS = "text/plain", "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "monitoring.md"


class Scrape:
    """What a server of metrics answered, read by prometheus_client's own parsers."""

    def __init__(self, url: str, accept: str) -> None:
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as response:
            self.text = response.read().decode()
            self.type = response.headers["Content-Type"]
        parse = (
            openmetrics.text_string_to_metric_families
            if self.type.startswith("application/openmetrics-text")
            else prometheus_client.parser.text_string_to_metric_families
        )
        self.families = {family.name: family for family in parse(self.text)}

    def value(self, name: str, wrapper: Any, **labels: str) -> float | None:
        labels = {"pool": wrapper.pool.name, **labels}
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None


@pytest.fixture
def url() -> Iterator[str]:
    """Where the registry with the collector is served."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PoolCollector())
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=[PLAIN, OPENMETRICS], ids=["plain", "openmetrics"])
def scrape(request: pytest.FixtureRequest, url: str) -> Callable[[], Scrape]:
    def scrape() -> Scrape:
        found = Scrape(url, request.param)
        assert found.type.startswith(request.param.partition(";")[0])
        return found

    return scrape


def test_what_a_scrape_finds_of_a_pool(make_alias, scrape, observer):
    wrapper = make_alias(pool={"pool_size": 3, "max_overflow": 0, "release": "request"})
    hold_at_once(wrapper.alias, 2)
    ask(wrapper, "SELECT @left_behind := 1")
    found = scrape()
    assert found.value("mysqlpool_connections", wrapper, state="out") == 1
    assert found.value("mysqlpool_connections", wrapper, state="idle") == 1
    assert found.value("mysqlpool_connections", wrapper, state="opening") == 0
    assert found.value("mysqlpool_connections_max", wrapper) == 3
    assert found.value("mysqlpool_waiting_threads", wrapper) == 0
    assert found.value("mysqlpool_connections_opened_total", wrapper) == 2
    assert len(observer.connections_of(wrapper.settings_dict["USER"])) == 2
    assert found.value("mysqlpool_checkouts_total", wrapper) == 3
    assert found.value("mysqlpool_checkins_total", wrapper) == 2
    assert found.value("mysqlpool_connect_seconds_count", wrapper) == 2
    assert found.value("mysqlpool_use_seconds_count", wrapper) == 2
    wrapper.close()
    found = scrape()
    assert found.value("mysqlpool_resets_total", wrapper) == 1
    assert found.value("mysqlpool_reset_seconds_count", wrapper) == 1
    wrapper.close_pool()
    found = scrape()
    assert found.value("mysqlpool_connections", wrapper, state="idle") == 0
    assert found.value("mysqlpool_connections_closed_total", wrapper, reason="pool_closed") == 2


def test_a_wait_and_a_timeout(make_alias, scrape):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 30, "release": "request"})
    with hold_connection(wrapper.alias), ThreadPoolExecutor(1) as executor:
        ask(wrapper, "SELECT 1")
        waiting = executor.submit(look_and_return, wrapper.alias)
        eventually(lambda: status_of(wrapper)["waiting"], lambda number: number == 1)
        assert scrape().value("mysqlpool_waiting_threads", wrapper) == 1
        wrapper.close()
        waiting.result(timeout=60)
    found = scrape()
    assert found.value("mysqlpool_waits_total", wrapper) == 1
    assert found.value("mysqlpool_wait_seconds_sum", wrapper) > 0
    assert found.value("mysqlpool_timeouts_total", wrapper) == 0

    hurried = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0.05, "release": "request"})
    ask(hurried, "SELECT 1")
    with ThreadPoolExecutor(1) as executor, pytest.raises(PoolTimeout):
        executor.submit(look_and_return, hurried.alias).result(timeout=60)
    assert scrape().value("mysqlpool_timeouts_total", hurried) == 1


def look_and_return(alias: str) -> None:
    with closing(connections[alias]) as own:
        ask(own, "SELECT 1")


def test_pins_and_failures_by_reason(make_alias, scrape):
    pinned = make_alias(pool={"release": "transaction"})
    ask(pinned, "SELECT @left_behind := 1")
    wrong = make_alias(PASSWORD="wrong")
    with pytest.raises(wrong.Database.OperationalError if hasattr(wrong.Database, "OperationalError") else Exception):
        ask(wrong, "SELECT 1")
    found = scrape()
    (reason,) = pool_statistics()[pinned.pool.name]["pins"]
    assert found.value("mysqlpool_pins_total", pinned, reason=reason) == 1
    assert found.value("mysqlpool_connections_failed_total", wrong) == 1
    assert "wrong" not in found.text


def test_the_buckets_add_up(make_alias, scrape):
    """Cumulative, as Prometheus has them, with the bounds and the sums of ``pool_statistics()``."""
    wrapper = make_alias(pool={"pool_size": 4, "max_overflow": 0, "release": "request"})
    for seconds in (0, 0.002, 0.02, 0.2):
        ask(wrapper, f"SELECT SLEEP({seconds})")
        wrapper.close()
    found, times = scrape(), pool_statistics()[wrapper.pool.name]["use_time"]
    buckets = {
        sample.labels["le"]: sample.value
        for sample in found.families["mysqlpool_use_seconds"].samples
        if sample.name == "mysqlpool_use_seconds_bucket" and sample.labels["pool"] == wrapper.pool.name
    }
    assert [float(bound) for bound in buckets] == [*times["bounds"], float("inf")]
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["+Inf"] == times["count"] == 4
    assert buckets["0.1"] == 3
    assert found.value("mysqlpool_use_seconds_sum", wrapper) == pytest.approx(times["sum"])
    assert found.value("mysqlpool_use_seconds_sum", wrapper) >= 0.222


def test_it_adds_up_under_load(make_alias, scrape):
    """Each scrape, in the middle of all that: what was checked out is out or was checked in, and none is lost."""
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 1, "release": "request"}, at_most=3)
    is_over = threading.Event()

    def work() -> int:
        rounds = 0
        while not is_over.is_set():
            look_and_return(wrapper.alias)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(8) as executor:
        working = [executor.submit(work) for _ in range(8)]
        scrapes = [scrape() for _ in range(30)]
        is_over.set()
        rounds = sum(future.result(timeout=60) for future in working)
    assert scrape().value("mysqlpool_checkouts_total", wrapper) == rounds
    for found in scrapes:
        checkouts, checkins = (found.value(f"mysqlpool_{name}_total", wrapper) for name in ("checkouts", "checkins"))
        assert checkouts - checkins == found.value("mysqlpool_connections", wrapper, state="out")
        number = sum(found.value("mysqlpool_connections", wrapper, state=state) for state in ("idle", "out"))
        assert number <= 3
    assert scrapes[-1].value("mysqlpool_waits_total", wrapper) > 0


def test_which_aliases_a_pool_serves(make_alias, scrape):
    one = make_alias()
    other = make_alias(like=one.alias)
    for wrapper in (one, other):
        ask(wrapper, "SELECT 1")
        wrapper.close()
    assert one.pool is other.pool
    address = pool_statistics()[one.pool.name]["address"]
    aliases = ",".join(sorted([one.alias, other.alias]))
    assert scrape().value("mysqlpool_pool_info", one, aliases=aliases, address=address) == 1
    assert one.settings_dict["PASSWORD"] not in scrape().text


def test_a_pool_without_a_limit_has_no_maximum(make_alias, scrape):
    wrapper = make_alias(pool={"pool_size": 0})
    ask(wrapper, "SELECT 1")
    found = scrape()
    assert found.value("mysqlpool_connections_max", wrapper) is None
    assert found.value("mysqlpool_connections", wrapper, state="out") == 1


def test_a_registry_knows_the_names(make_alias):
    """Without a scrape; so it refuses a second collector, and can serve some of the metrics only."""
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    with pytest.raises(ValueError, match="mysqlpool_checkouts"):
        registry.register(PoolCollector())
    wrapper = make_alias()
    ask(wrapper, "SELECT 1")
    some = list(registry.restricted_registry(["mysqlpool_checkouts_total"]).collect())
    assert [metric.name for metric in some] == ["mysqlpool_checkouts"]


def test_as_a_wsgi_application(make_alias):
    """As a site may mount it."""
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    wrapper = make_alias()
    ask(wrapper, "SELECT 1")
    started: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    body = b"".join(make_wsgi_app(registry)(environ, lambda status, headers: started.append(status))).decode()
    assert started == ["200 OK"]
    assert f'mysqlpool_checkouts_total{{pool="{wrapper.pool.name}"}} 1.0' in body


def test_a_scrape_takes_no_connection(make_alias, scrape):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0, "release": "request"})
    ask(wrapper, "SELECT 1")
    checkouts = scrape().value("mysqlpool_checkouts_total", wrapper)
    assert scrape().value("mysqlpool_checkouts_total", wrapper) == checkouts
