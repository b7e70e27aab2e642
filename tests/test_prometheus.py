"""``django_mysqlpool.monitoring.prometheus``: what a scrape finds, and that it adds up with what was done to the server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import accumulate
from typing import Any

import httpx
import port_for
import psutil
import pytest
from django.db import OperationalError, connections
from django.test import RequestFactory

from django_mysqlpool import PoolTimeout, hold_connection, pool_statistics
from tests.companions import needs
from tests.helpers import ask, eventually, hold_at_once, status_of
from tests.pages import block, table
from tests.sites import WEB_SERVERS, Site, serving

needs("prometheus_client")

import prometheus_client.parser  # noqa: E402
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app, make_wsgi_app, start_http_server  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics  # noqa: E402

from django_mysqlpool.monitoring.prometheus import PoolCollector  # noqa: E402

pytestmark = pytest.mark.companion

PLAIN, OPENMETRICS = "text/plain", "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scrape:
    """The answer of a server of metrics, read by prometheus_client's own parsers."""

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
    found = eventually(scrape, lambda found: found.value("mysqlpool_connections", wrapper, state="idle") == 0)
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
    wrong = make_alias(PASSWORD="mistyped")
    with pytest.raises(OperationalError):
        ask(wrong, "SELECT 1")
    found = scrape()
    (reason,) = pool_statistics()[pinned.pool.name]["pins"]
    assert found.value("mysqlpool_pins_total", pinned, reason=reason) == 1
    assert found.value("mysqlpool_connections_failed_total", wrong) == 1
    assert "mistyped" not in found.text


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
    assert list(buckets.values()) == list(accumulate(times["counts"]))
    assert buckets["+Inf"] == times["count"] == 4
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
    wrapper = make_alias(pool={"pool_size": 0, "release": "request"})
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


def test_as_an_asgi_application(make_alias):
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    ask(wrapper := make_alias(), "SELECT 1")

    async def get() -> str:
        transport = httpx.ASGITransport(make_asgi_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/metrics")).text

    assert f'mysqlpool_checkouts_total{{pool="{wrapper.pool.name}"}} 1.0' in asyncio.run(get())


def test_on_the_page_of_django_prometheus(make_alias):
    exports = pytest.importorskip("django_prometheus.exports")
    ask(wrapper := make_alias(), "SELECT 1")
    collector = PoolCollector()
    REGISTRY.register(collector)
    try:
        body = exports.ExportToDjangoView(RequestFactory().get("/metrics")).content.decode()
    finally:
        REGISTRY.unregister(collector)
    assert f'mysqlpool_checkouts_total{{pool="{wrapper.pool.name}"}} 1.0' in body


def test_a_scrape_takes_no_connection(make_alias, scrape):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 0, "release": "request"})
    ask(wrapper, "SELECT 1")
    checkouts = scrape().value("mysqlpool_checkouts_total", wrapper)
    assert scrape().value("mysqlpool_checkouts_total", wrapper) == checkouts


class TestThePage:
    """``docs/monitoring.md``."""

    def test_its_table_is_what_is_emitted(self):
        emitted = [(metric.name, metric.type, metric.unit) for metric in PoolCollector().describe()]
        listed = {name: (kind, unit) for name, kind, unit, _ in table("monitoring.md", "Prometheus")}
        suffixes = {"counter": "_total", "info": "_info"}
        assert set(listed) == {name + suffixes.get(kind, "") for name, kind, _ in emitted}
        for name, kind, unit in emitted:
            assert listed[name + suffixes.get(kind, "")][0] == kind
            assert not unit or listed[name][1] == unit

    def test_its_queries_name_metrics_that_exist(self):
        names = {sample for metric in PoolCollector().describe() for sample in samples_of(metric)}
        queries = block("monitoring.md", "Prometheus", "text")
        assert set(re.findall(r"\bmysqlpool_\w+", queries)) <= names

    def test_its_code_registers_the_collector(self, make_alias):
        ask(wrapper := make_alias(), "SELECT 1")
        code = block("monitoring.md", "Prometheus", "python")
        registry = CollectorRegistry()
        exec(code.replace("from prometheus_client import REGISTRY", ""), {"REGISTRY": registry})
        assert registry.get_sample_value("mysqlpool_checkouts_total", {"pool": wrapper.pool.name}) == 1


def samples_of(metric: Any) -> list[str]:
    """The names of a metric's samples."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    return [metric.name + suffix for suffix in suffixes.get(metric.type, [""])]


class TestSeveralProcesses:
    """gunicorn with the configuration of ``docs/monitoring.md``: each worker has a port, and all of them add up."""

    WORKERS = 2

    @pytest.fixture
    def ports(self) -> range:
        first = next(
            port
            for port in range(30000, 60000, 16)
            if all(port_for.is_available(port + n) for n in range(2 * self.WORKERS))
        )
        return range(first, first + 2 * self.WORKERS)

    @pytest.fixture
    def site(self, server, observer, tmp_path, ports, monkeypatch) -> Iterator[Site]:
        configuration = block("monitoring.md", "Several processes", "python")
        (given,) = re.findall(r"range\(\d+, \d+\)", configuration)
        file = tmp_path / "gunicorn.conf.py"
        file.write_text(configuration.replace(given, repr(ports)))
        command = WEB_SERVERS["gunicorn"]
        command = [*command[:-1], f"--config={file}", f"--workers={self.WORKERS}", command[-1]]
        monkeypatch.setitem(WEB_SERVERS, "gunicorn with metrics", command)
        with serving(server, observer, tmp_path) as serve:
            yield serve("gunicorn with metrics", pool={"pool_size": 2, "max_overflow": 0, "release": "request"})

    def scrapes(self, ports: range) -> dict[int, Scrape]:
        """By port; without those on which nobody listens."""
        found = {}
        for port in ports:
            with suppress(urllib.error.URLError):
                found[port] = Scrape(f"http://127.0.0.1:{port}/metrics", OPENMETRICS)
        return found

    @staticmethod
    def checkouts(scrape: Scrape) -> int:
        samples = scrape.families["mysqlpool_checkouts"].samples
        return int(sum(sample.value for sample in samples))

    def test_the_sum_is_what_was_requested(self, site, ports, observer):
        eventually(lambda: len(self.scrapes(ports)), lambda number: number == self.WORKERS)
        assert site.storm(["/count/"] * 60) == {200: 60}
        scrapes = self.scrapes(ports)
        assert sum(map(self.checkouts, scrapes.values())) == 60
        assert len(observer.connections_of(site.user)) == sum(
            sample.value
            for scrape in scrapes.values()
            for sample in scrape.families["mysqlpool_connections"].samples
            if sample.labels["state"] in {"idle", "out"}
        )

    def test_the_multiprocess_mode_leaves_it_out(self, tmp_path):
        """It collects what the client's own metrics have written, and nothing else."""
        code = (
            "from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest, multiprocess\n"
            "from django_mysqlpool.monitoring.prometheus import PoolCollector\n"
            "REGISTRY.register(PoolCollector())\n"
            "Counter('written', 'to a file').inc()\n"
            "multiprocess.MultiProcessCollector(registry := CollectorRegistry())\n"
            "print(generate_latest(registry).decode())"
        )
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert "written_total 1.0" in done.stdout
        assert "mysqlpool" not in done.stdout

    def test_a_worker_that_takes_anothers_place_has_its_port(self, site, ports):
        eventually(lambda: len(self.scrapes(ports)), lambda number: number == self.WORKERS)
        before = set(self.scrapes(ports))
        worker = psutil.Process(site.process.process.pid).children(recursive=True)[-1]
        worker.kill()
        worker.wait(timeout=60)
        eventually(lambda: len(self.scrapes(ports)), lambda number: number == self.WORKERS)
        assert set(self.scrapes(ports)) == before


def test_it_names_the_extra_that_it_needs():
    """Where prometheus-client is not installed."""
    code = "import sys; sys.modules['prometheus_client'] = None; import django_mysqlpool.monitoring.prometheus"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: django_mysqlpool.monitoring.prometheus needs prometheus-client")
    assert "the extra 'prometheus'" in last
