"""OpenTelemetry: its instrumentation of mysqlclient wraps each connection, that of Django each request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.checks import run_checks
from django.db import OperationalError, connection, connections, transaction
from django.test import Client, override_settings

from tests.companions import needs
from tests.helpers import backend_pid, status_of
from tests.shop.models import Account

needs("opentelemetry.instrumentation.django", "opentelemetry.instrumentation.mysqlclient", "opentelemetry.sdk")

from opentelemetry.instrumentation.django import DjangoInstrumentor  # noqa: E402
from opentelemetry.instrumentation.mysqlclient import MySQLClientInstrumentor  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

pytestmark = pytest.mark.companion


@pytest.fixture
def provider():
    provider = TracerProvider()
    yield provider
    provider.shutdown()


@pytest.fixture
def spans(provider):
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture(params=[False, True], ids=["plain", "commenter"])
def instrumented(request, provider):
    """``MySQLdb.connect`` gives connections in OpenTelemetry's proxy from here on."""
    MySQLClientInstrumentor().instrument(tracer_provider=provider, enable_commenter=request.param)
    yield request.param
    MySQLClientInstrumentor().uninstrument()


def statements(spans) -> list[str]:
    return [span.attributes["db.statement"] for span in spans.get_finished_spans() if "db.statement" in span.attributes]


def test_each_statement_has_a_span(make_alias, instrumented, spans):
    wrapper = make_alias()
    Account.objects.using(wrapper.alias).count()
    spans.clear()
    for _ in range(3):
        Account.objects.using(wrapper.alias).filter(name="nobody").count()
        wrapper.close()
    assert len(statements(spans)) == 3
    assert {statement.split(" WHERE")[0] for statement in statements(spans)} == {
        "SELECT COUNT(*) AS `__count` FROM `shop_account`"
    }
    (span, *_) = spans.get_finished_spans()
    assert span.attributes["db.user"] == wrapper.settings_dict["USER"]
    assert wrapper.settings_dict["PASSWORD"] not in str([span.to_json() for span in spans.get_finished_spans()])


def test_the_pool_works_with_what_is_in_the_proxy(make_alias, instrumented, observer):
    """A warm checkout, a dirty session's reset, a death in the pool, and the farewell."""
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0})
    first = backend_pid(wrapper)
    with wrapper.cursor() as cursor:
        cursor.execute("SET @left_behind = 1")
    wrapper.close()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT @left_behind, CONNECTION_ID()")
        assert cursor.fetchone() == (None, first)
    wrapper.close()
    observer.query(f"KILL {first}")
    assert backend_pid(wrapper) != first
    wrapper.close()
    assert status_of(wrapper)["out"] == 0
    wrapper.close_pool()
    assert observer.connections_of(wrapper.settings_dict["USER"]) == set()


def test_transactions(make_alias, instrumented, spans):
    wrapper = make_alias()
    accounts = Account.objects.using(wrapper.alias)
    done = []
    with transaction.atomic(using=wrapper.alias):
        account = accounts.create(name="traced")
        transaction.on_commit(lambda: done.append(account.pk), using=wrapper.alias)
        assert done == []
    assert done == [account.pk]
    with pytest.raises(RuntimeError), transaction.atomic(using=wrapper.alias):
        account.delete()
        raise RuntimeError
    assert accounts.filter(name="traced").count() == 1
    accounts.filter(name="traced").delete()
    assert sum(statement.startswith("INSERT") for statement in statements(spans)) == 1
    wrapper.close()
    assert status_of(wrapper)["out"] == 0


def test_comments_do_not_dirty_a_session(make_alias, instrumented, observer):
    """Each statement's text is another one with the commenter; the pool looks past the comment."""
    wrapper = make_alias()
    Account.objects.using(wrapper.alias).count()
    (session,) = wrapper.pool.sessions
    wrapper.close()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT INFO FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()")
        (sent,) = cursor.fetchone()
    assert ("traceparent=" in sent) is instrumented
    Account.objects.using(wrapper.alias).create(name="o'clock 100%").delete()
    assert not session.is_dirty, session.history.dirtied_by
    assert wrapper.pool.statistics.pins == {}


def test_errors_are_spans_and_nothing_is_left_out(make_alias, instrumented, spans):
    wrapper = make_alias()
    with pytest.raises(OperationalError), wrapper.cursor() as cursor:
        cursor.execute("SELECT no_such_column FROM shop_account")
    wrapper.close()
    (failed,) = [span for span in spans.get_finished_spans() if not span.status.is_ok and span.status.description]
    assert "no_such_column" in failed.status.description
    assert status_of(wrapper)["out"] == 0


def test_threads_keep_the_cap(make_alias, instrumented):
    """The server would refuse a third connection."""
    wrapper = make_alias(pool={"pool_size": 2, "max_overflow": 0}, at_most=2)

    def work(_):
        Account.objects.using(wrapper.alias).count()
        connections[wrapper.alias].close()

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(100)))
    assert status_of(wrapper)["out"] == 0
    assert status_of(wrapper)["open"] <= 2


class TestDjango:
    """With the instrumentation of Django beside that of the driver: a statement's span is a child of its request's."""

    @pytest.fixture
    def site(self, instrumented, provider, monkeypatch):
        monkeypatch.setenv("OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION", "1")
        connection.close()
        connection.close_pool()
        with override_settings(MIDDLEWARE=["django_mysqlpool.middleware.ConnectionReleaseMiddleware"]):
            DjangoInstrumentor().instrument(tracer_provider=provider)
            yield Client(raise_request_exception=False)
            DjangoInstrumentor().uninstrument()

    def test_a_request(self, site, spans):
        assert site.get("/write/").status_code == 200
        (request,) = [span for span in spans.get_finished_spans() if "http.method" in span.attributes]
        inserts = [
            span for span in spans.get_finished_spans() if span.attributes.get("db.statement", "").startswith("INSERT")
        ]
        assert [span.parent.span_id for span in inserts] == [request.context.span_id]
        assert status_of(connection)["out"] == 0

    def test_a_request_that_fails(self, site, spans):
        assert site.get("/fail/").status_code == 500
        assert any("shop_account" in statement for statement in statements(spans))
        assert status_of(connection)["out"] == 0

    @pytest.mark.parametrize("position", ["0", "1"])
    def test_the_check_of_the_middleware(self, provider, monkeypatch, position):
        """By default OpenTelemetry's comes first, where the release middleware should be."""
        monkeypatch.setenv("OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION", position)
        with override_settings(MIDDLEWARE=["django_mysqlpool.middleware.ConnectionReleaseMiddleware"]):
            DjangoInstrumentor().instrument(tracer_provider=provider)
            found = {message.id for message in run_checks()}
            DjangoInstrumentor().uninstrument()
        assert ("django_mysqlpool.W003" in found) is (position == "0")
