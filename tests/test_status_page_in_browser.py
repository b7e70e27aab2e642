"""The status page in a browser, as a person has it. Skipped if Chromium or Selenium is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest

from tests.helpers import eventually

pytestmark = [pytest.mark.slow]

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no Chromium with its chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)

EVERYBODY = {"DJANGO_SETTINGS_MODULE": "tests.monitored.settings", "MYSQLPOOL_TEST_EVERYBODY": "1"}
DESKTOP, TELEPHONE = (1100, 900), (360, 740)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(started):
    """With nothing in its console that was not there when the test began."""
    started.get_log("browser")
    yield started
    started.get("about:blank")


def look_with(browser, size, scheme):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == TELEPHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def site(serve):
    return serve("gunicorn", pool={"pool_size": 2, "max_overflow": 0}, **EVERYBODY)


@pytest.fixture
def page(browser, site):
    """The page, after its first figures."""
    site.get("/count/")
    browser.get(f"http://127.0.0.1:{site.port}/mysqlpool/")
    eventually(lambda: text(browser, ".state"), bool)
    return browser


def text(browser, selector) -> str:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent).join('|')", selector
    )


def label(browser, selector) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).getAttribute('aria-label')", selector)


def errors(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def keys(browser, *names) -> None:
    webdriver.ActionChains(browser).send_keys(*names).perform()


def test_it_shows_what_the_load_does_without_a_reload(page, site):
    page.execute_script("window.isTheSamePage = true")
    assert text(page, ".state") == "Connections are free"
    with ThreadPoolExecutor(5) as executor:
        requests = [executor.submit(site.get, "/block/?seconds=6&secret=1") for _ in range(4)]
        eventually(lambda: text(page, ".state"), lambda state: state == "2 threads waiting for a connection")
        assert label(page, ".bar") == "2 out, 0 opening, 0 idle, 2 waiting; the cap is 2"
        assert text(page, ".holders tbody td.text") == "GET /block/|GET /block/"
        assert text(page, "#news").endswith("threads are waiting for a connection")
        assert {request.result().status_code for request in requests} == {200}
    eventually(lambda: text(page, ".state"), lambda state: state == "Connections are free")
    eventually(lambda: label(page, ".chart"), lambda chart: chart == "The last five minutes: at most 2 out and 2 waiting")
    assert "connection opened" in text(page, "#events td.text")
    assert page.execute_script("return window.isTheSamePage")
    assert "secret" not in page.page_source
    assert errors(page) == []


def test_axe_finds_nothing_to_mend(page, site):
    with ThreadPoolExecutor(5) as executor:
        requests = [executor.submit(site.get, "/block/?seconds=8") for _ in range(4)]
        eventually(lambda: text(page, ".state"), lambda state: "waiting" in state)
        for size, scheme in product((DESKTOP, TELEPHONE), ("light", "dark")):
            look_with(page, size, scheme)
            violations = axe.Axe().run(page)["violations"]
            assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations] == [], (size, scheme)
            assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), size
        assert [request.result().status_code for request in requests] == [200] * 4


def test_light_and_dark(page):
    colours = set()
    for scheme in ("light", "dark"):
        look_with(page, DESKTOP, scheme)
        colours.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_it_is_paused_by_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    keys(page, Keys.TAB)
    assert page.execute_script("return document.activeElement.id") == "pause"
    keys(page, Keys.ENTER)
    assert page.execute_script("return document.activeElement.getAttribute('aria-pressed')") == "true"
    assert text(page, "#age").endswith(", paused")
    keys(page, Keys.TAB)
    assert "PID" in page.execute_script("return document.activeElement.textContent")
    keys(page, Keys.SHIFT, Keys.TAB)
    keys(page, Keys.SPACE)


def test_the_site_is_gone(page, site):
    site.process.stop()
    eventually(lambda: text(page, "#trouble"), lambda trouble: trouble == "No new figures: the site does not answer")
    assert text(page, ".state")  # the last figures stay
