"""Sentry: it replaces methods of Django's cursors and of its ``DatabaseWrapper``, for spans and breadcrumbs."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.utils.dateparse import parse_datetime

from tests.companions import needs
from tests.helpers import eventually
from tests.sites import Site

needs("sentry_sdk")

from sentry_sdk.envelope import Envelope  # noqa: E402

pytestmark = pytest.mark.companion

COUNT = "SELECT COUNT(*) AS `__count` FROM `shop_account`"


class Sentry:
    """A server that takes reports, for those who have its address (``dsn``)."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        reports = self.reports

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                for item in Envelope.deserialize(body):
                    if item.payload.json is not None:
                        reports.append(item.payload.json)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://key@127.0.0.1:{self.server.server_port}/1"

    def of(self, path: str) -> list[dict[str, Any]]:
        return [report for report in list(self.reports) if report.get("request", {}).get("url", "").endswith(path)]

    def wait_for(self, path: str, number: int, kind: str | None = "transaction") -> list[dict[str, Any]]:
        """That many reports about requests of a path: "transaction", a trace, or ``None``, an error."""
        found: list[dict[str, Any]] = []

        def look() -> list[dict[str, Any]]:
            found[:] = [report for report in self.of(path) if report.get("type") == kind]
            return found

        eventually(look, lambda reports: len(reports) >= number)
        return found


@pytest.fixture(scope="module")
def sentry() -> Iterator[Sentry]:
    sentry = Sentry()
    thread = threading.Thread(target=sentry.server.serve_forever)
    thread.start()
    yield sentry
    sentry.server.shutdown()
    sentry.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def site(kind, serve_companion, sentry) -> Site:
    return serve_companion(kind, "sentry", MYSQLPOOL_TEST_SENTRY_DSN=sentry.dsn)


@pytest.fixture(autouse=True)
def forget(sentry) -> None:
    sentry.reports.clear()


def spans(trace: dict[str, Any]) -> list[str]:
    return [span["description"] for span in trace["spans"] if span["op"].startswith("db")]


def test_traces(site, sentry):
    """Each request's trace has its own statements, and the commit of its transaction."""
    for _ in range(6):
        assert site.get("/count/").status_code == 200
        assert site.get("/write/").status_code == 200
    for trace in sentry.wait_for("/count/", 6):
        assert spans(trace).count(COUNT) == 1, spans(trace)
    for trace in sentry.wait_for("/write/", 6):
        statements = spans(trace)
        (insert,) = [number for number, text in enumerate(statements) if text.startswith("INSERT INTO `shop_account`")]
        (delete,) = [number for number, text in enumerate(statements) if text.startswith("DELETE FROM `shop_account`")]
        assert insert < delete < statements.index("COMMIT"), statements
    assert site.out() == 0


def test_an_error_tells_what_was_asked_before(site, sentry):
    assert site.get("/fail/").status_code == 500
    (error,) = sentry.wait_for("/fail/", 1, kind=None)
    assert error["exception"]["values"][-1]["type"] == "RuntimeError"
    assert COUNT in [crumb["message"] for crumb in error["breadcrumbs"]["values"] if crumb["category"] == "query"]
    assert site.out() == 0


def test_many_at_once(site, sentry):
    """No trace has another's statements."""
    assert site.storm(["/count/", "/write/", "/slow/"] * 20) == {200: 60}
    traces = sentry.wait_for("/slow/", 20)
    for trace in traces:
        assert [text for text in spans(trace) if text.startswith("SELECT SLEEP")] == ["SELECT SLEEP(%s)"]
        assert not [text for text in spans(trace) if "shop_account" in text]
    site.wait_until_none_is_out()


def test_each_checkout_is_seen(site, sentry):
    """Sentry calls it "connect", as on Django's own engine; what a request waits for the pool is in it."""
    for path in ("/count/", "/slow/"):  # by the second storm each thread has had a connection before
        site.storm([path] * 20)
    connects = []
    for trace in sentry.wait_for("/slow/", 20):
        connects += [duration(span) for span in trace["spans"] if span["description"] == "connect"]
        assert "connect" in spans(trace)
    assert max(connects) > 0.05


def duration(span: dict[str, Any]) -> float:
    begin, end = (parse_datetime(span[name]) for name in ("start_timestamp", "timestamp"))
    return (end - begin).total_seconds()
