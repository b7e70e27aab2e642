"""Django's debug toolbar: it wraps the cursors of a request, and asks again for EXPLAIN and profiles."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.companions import needs
from tests.sites import Site

needs("debug_toolbar")

pytestmark = pytest.mark.companion

SETTINGS = "tests.companions.sites.toolbar"
PAGES = {"gunicorn": ["/page/"], "uvicorn wrapped": ["/page/", "/page-async/"]}


@pytest.fixture(scope="module")
def site(kind, serve_companion) -> Site:
    return serve_companion(kind, "toolbar")


class Panel:
    """What the toolbar shows of a request's SQL, and what its buttons do."""

    def __init__(self, site: Site, request_id: str) -> None:
        self._site = site
        answer = site.client.get("/__debug__/render_panel/", params={"request_id": request_id, "panel_id": "SQLPanel"})
        self.content = html.unescape(answer.json()["content"])
        self.text = re.sub(r"<[^>]*>|\s+", " ", self.content)

    def press(self, button: str, number: int = 0) -> str:
        """Press a button of the query with that number."""
        form = re.findall(r"<form.*?</form>", self.content, re.DOTALL)[number]
        data = {"signed": re.search(r'name="signed" value="(.*?)">', form, re.DOTALL)[1]}
        answer = self._site.client.post(f"/__debug__/{button}/", data=data)
        assert answer.status_code == 200, answer.text
        return re.sub(r"<[^>]*>|\s+", " ", html.unescape(answer.json()["content"]))


def test_it_shows_the_statements_of_a_pooled_request(site, kind):
    for page in PAGES[kind] * 2:
        answer = site.get(page)
        assert answer.status_code == 200
        assert 'id="djDebug"' in answer.text
        panel = Panel(site, answer.headers["djdt-request-id"])
        assert "seen by the toolbar" in panel.text
        for verb in ("INSERT", "DELETE") if page == "/page/" else ():
            assert verb in panel.text
        assert site.out() == 0
    assert site.get("/page-with-error/").status_code == 500
    assert site.out() == 0


def test_its_buttons(site, kind):
    for page in PAGES[kind]:
        panel = Panel(site, site.get(page).headers["djdt-request-id"])
        assert "shop_account" in panel.press("sql_explain")
        assert "COUNT" in panel.press("sql_select")
        # SET profiling dirties the session; what its next borrower profiles is its own statement, twice in the same pool.
        for _ in range(2):
            assert "Executing" in panel.press("sql_profile") or "executing" in panel.press("sql_profile")
        assert site.out() == 0


def test_many_at_once(site, kind):
    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(site.get, PAGES[kind] * 15))
    assert {answer.status_code for answer in answers} == {200}, site.log.read_text()[-6000:]
    ids = [answer.headers["djdt-request-id"] for answer in answers]
    assert all("seen by the toolbar" in Panel(site, request_id).text for request_id in ids[-5:])
    assert site.out() == 0


def test_its_store_in_the_database(serve_companion):
    """Under WSGI: in the middle of an asynchronous stack the toolbar would write to it from the event loop's thread."""
    store = {"MYSQLPOOL_TEST_TOOLBAR_STORE": "DatabaseStore"}
    migrate = [sys.executable, "-W", "error", "-m", "django", "migrate", "debug_toolbar", f"--settings={SETTINGS}"]
    done = subprocess.run(migrate, env={**os.environ, **store}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    site = serve_companion("gunicorn", "toolbar", **store)
    for _ in range(5):
        answer = site.get("/page/")
    assert "seen by the toolbar" in Panel(site, answer.headers["djdt-request-id"]).text
    assert site.out() == 0
