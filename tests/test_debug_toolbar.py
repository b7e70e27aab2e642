"""``django_mysqlpool.monitoring.debug_toolbar``: what the panel shows of requests by Django's clients in a real project."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.server import Server
from tests.companions import needs
from tests.helpers import DATABASE

needs("debug_toolbar")

pytestmark = [pytest.mark.companion, pytest.mark.django, pytest.mark.asgiref]

SITE = Path(__file__).with_name("toolbar_site.py")
_LINES = {
    match[1]: number
    for number, line in enumerate(SITE.read_text().splitlines(), 1)
    if (match := re.search(r"# the line of (\w+)\(\)$", line))
}


class Requested:
    """One request, and the panel of it."""

    def __init__(self, told: dict[str, Any], stored: str, body: str, status: int) -> None:
        self.path = told["path"]
        self.subtitle = told["subtitle"]
        self.events = told["statistics"].get("events", [])
        self.kinds = [event["kind"] for event in self.events]
        self.content = told["content"]
        self.stored = stored
        self.body = body
        self.status = status
        self.text = html.unescape(re.sub(r"<[^>]*>|\s+", " ", told["content"]))

    def event(self, kind: str) -> dict[str, Any]:
        (event,) = (event for event in self.events if event["kind"] == kind)
        return event


@pytest.fixture(scope="module")
def request_all(server: Server) -> Callable[..., list[Requested]]:
    """Requests paths in a process of the project: ``request_all("sync", "/count/", "/dirty/")``."""

    def run(kind: str, *paths: str, **environment: str) -> list[Requested]:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.toolbar_site",
            "MYSQLPOOL_TEST_DATABASE": json.dumps(server.settings(DATABASE)),
            **environment,
        }
        command = [sys.executable, "-W", "error", "-m", "tests.toolbar_site", kind, *paths]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["observers"] == 0, "something is watched after the requests"
        found = {told["path"] for told in answer["told"]}
        assert found == set(paths)
        told = sorted(answer["told"], key=lambda told: paths.index(told["path"])) if kind != "at-once" else answer["told"]
        return [Requested(*parts) for parts in zip(told, answer["stored"], answer["bodies"], answer["status"], strict=True)]

    return run


@pytest.fixture(scope="module")
def requested(request_all) -> dict[str, Requested]:
    """The pages of the project, by their names, each requested once."""
    names = ("nothing", "count", "two_aliases", "dirty", "pinned", "wait", "timeout", "threads", "fail")
    return dict(zip(names, request_all("sync", *(f"/{name}/" for name in names)), strict=True))


class TestASynchronousRequest:
    def test_that_uses_no_connection(self, requested):
        assert requested["nothing"].events == []
        assert "has used no connection" in requested["nothing"].text
        assert requested["nothing"].subtitle == "not used"

    def test_its_checkout_with_the_line_of_code(self, requested):
        page = requested["count"]
        checkout = page.event("checkout")
        assert checkout["place"] == f"{SITE}:{_LINES['count']}, in count"
        assert {"file": SITE.name, "function": "count", "number": _LINES["count"]}.items() <= checkout["stack"][-1].items()
        assert checkout["stack"][-1]["text"] == SITE.read_text().splitlines()[_LINES["count"] - 1].strip()
        assert page.subtitle == "1 checkout"
        assert f"{SITE.name}:{_LINES['count']}, in count" in page.text
        assert "the line of count()" in page.text

    def test_frames_of_the_machinery_are_hidden(self, requested):
        folders = {line["folder"] for event in requested["count"].events for line in event["stack"]}
        assert not any(re.search(r"[/\\]django_mysqlpool[/\\]|[/\\]django[/\\]db\b", f"{folder}/") for folder in folders)

    def test_what_is_opened_for_it(self, requested):
        assert "opened" in requested["count"].kinds
        assert requested["count"].kinds.index("opened") < requested["count"].kinds.index("checkout")

    def test_its_reset(self, requested):
        page = requested["dirty"]
        assert [kind for kind in page.kinds if kind in {"checkout", "reset", "checkin"}] == ["checkout", "reset", "checkin"]
        assert "1 reset" in page.subtitle
        assert "a secret" not in json.dumps(page.events)

    def test_its_pin(self, requested):
        page = requested["pinned"]
        assert "pin" in page.kinds
        assert "1 pin" in page.subtitle
        assert "a secret" not in json.dumps(page.events)

    def test_its_wait(self, requested):
        page = requested["wait"]
        assert float(dict(page.event("wait")["details"])["time"].removesuffix(" ms")) > 0
        assert page.event("wait")["place"] == f"{SITE}:{_LINES['wait']}, in wait"
        assert page.kinds.count("checkout") == 1, "the other thread's is none of the request's"

    def test_its_timeout(self, requested):
        assert "timeout" in requested["timeout"].kinds
        assert "1 timeout" in requested["timeout"].subtitle
        assert "checkout" not in requested["timeout"].kinds

    def test_its_threads(self, requested):
        assert requested["threads"].kinds.count("checkout") == 2

    def test_several_pools(self, requested):
        assert len({event["pool"] for event in requested["two_aliases"].events}) == 2

    def test_that_fails(self, requested):
        assert requested["fail"].status == 500
        assert "checkout" in requested["fail"].kinds

    def test_the_toolbar_is_in_the_page_and_has_the_panel(self, requested):
        page = requested["count"]
        assert 'id="djDebug"' in page.body
        assert 'id="djdt-PoolPanel"' in page.body
        assert "1 checkout" in page.body

    def test_the_stored_panel_is_the_same(self, requested):
        """As the toolbar fetches it later, with a request of its own."""
        for page in requested.values():
            assert page.stored.split() == page.content.split()


class TestAnAsynchronousRequest:
    def test_an_asynchronous_view_in_a_synchronous_stack(self, request_all):
        """As ``runserver`` has it."""
        (page,) = request_all("sync", "/count_async/")
        assert page.event("checkout")["place"] == f"{SITE}:{_LINES['count_async']}, in count_async"

    def test_the_stack_has_the_line_that_the_view_awaits(self, request_all):
        (page,) = request_all("async", "/count_async/")
        checkout = page.event("checkout")
        assert checkout["place"] == f"{SITE}:{_LINES['count_async']}, in count_async"
        assert "1 checkout" in page.subtitle

    def test_a_synchronous_view_in_an_asynchronous_stack(self, request_all):
        (page,) = request_all("async", "/count/")
        assert page.event("checkout")["place"] == f"{SITE}:{_LINES['count']}, in count"

    def test_requests_at_once_have_their_own_each(self, request_all):
        pages = request_all("at-once", *["/count_async/"] * 5, *["/nothing/"] * 5)
        for page in pages:
            assert page.kinds.count("checkout") == (page.path == "/count_async/"), page.events
            assert {event["place"].rpartition(" ")[2] for event in page.events if event["kind"] == "checkout"} <= {
                "count_async"
            }


def test_without_stacks(request_all):
    (page,) = request_all("sync", "/count/", MYSQLPOOL_TEST_WITHOUT_STACKS="1")
    assert page.event("checkout")["stack"] == []
    assert page.subtitle == "1 checkout"


def test_it_names_the_extra_that_it_needs():
    """Where the toolbar is not installed."""
    code = "import sys; sys.modules['debug_toolbar'] = None; import django_mysqlpool.monitoring.debug_toolbar"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("ImportError: django_mysqlpool.monitoring.debug_toolbar needs")
    assert "the extra 'debug-toolbar'" in done.stderr.splitlines()[-1]
