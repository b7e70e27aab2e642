"""The status page and the probes: who is let in, what they take from the pool, and what they say under load."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import django.contrib.auth.middleware
import httpx
import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections
from django.test import Client, override_settings

import django_mysqlpool.monitoring.urls  # noqa: F401 (from its import on there is a history)
from django_mysqlpool import PoolTimeout, close_pool, pool_statistics
from django_mysqlpool.monitoring import access, readiness
from django_mysqlpool.monitoring.history import POINTS, SAME_FOR, History
from tests.helpers import backend_pid, eventually, hold_at_once, in_thread_holding
from tests.monitored import settings as monitored
from tests.relay import Relay

pytestmark = [pytest.mark.django, pytest.mark.python, pytest.mark.mode]

TOKEN = {"Authorization": f"Bearer {monitored.MYSQLPOOL_STATUS_TOKEN}"}
ADDRESSES = ("/mysqlpool/", "/mysqlpool/?format=json", "/mysqlpool/healthz", "/mysqlpool/readyz")
SETTINGS = ("MIDDLEWARE", "ROOT_URLCONF", "SESSION_ENGINE", "LOGIN_URL", "MYSQLPOOL_STATUS_TOKEN")


class UsersOn:
    """A router: the users are read by this alias."""

    def __init__(self, alias):
        self._alias = alias

    def db_for_read(self, model, **hints):
        return self._alias if model is User else None


@pytest.fixture(autouse=True)
def site():
    access.lookups.failed_at = -math.inf
    with override_settings(**{name: getattr(monitored, name) for name in SETTINGS}):
        yield


@pytest.fixture
def alias(make_alias):
    """The users' database, by a pool of one connection."""
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 20})
    with override_settings(DATABASE_ROUTERS=[UsersOn(wrapper.alias)]):
        yield wrapper.alias


@pytest.fixture
def users(database):
    made = {
        name: User.objects.create_user(name, password="secret of a user", is_staff=name == "staff")
        for name in ("staff", "customer")
    }
    yield made
    for user in made.values():
        user.delete()


@pytest.fixture
def logged_in(users):
    """Makes a client that a user is logged in with."""

    def make(name):
        client = Client()
        client.force_login(users[name])
        return client

    return make


def numbers_of(alias):
    name = connections[alias].pool.name  # makes the pool, where nothing has yet
    return pool_statistics()[name]


def checkouts(alias):
    return numbers_of(alias)["checkouts"]


def get_in_thread_that_ends(client, path="/mysqlpool/", **headers):
    """As a request of its own: what this thread holds does not serve it."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(client.get, path, headers=headers).result()


@contextmanager
def exhausted(alias):
    """Somebody has the only connection, and keeps it."""
    done, held = threading.Event(), threading.Event()

    def hold():
        in_thread_holding(alias, lambda: (held.set(), done.wait(60)))

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        yield
    finally:
        done.set()
        thread.join()


class TestWhoIsLetIn:
    def test_a_stranger_is_asked_to_log_in(self):
        response = Client().get("/mysqlpool/")
        assert (response.status_code, response["Location"]) == (302, "/login/?next=/mysqlpool/")

    def test_a_stranger_gets_no_figures(self):
        response = Client().get("/mysqlpool/?format=json")
        assert (response.status_code, response.json()) == (401, {"error": "Please log in."})

    def test_a_member_of_staff_sees_it(self, logged_in):
        assert logged_in("staff").get("/mysqlpool/").status_code == 200

    def test_a_customer_does_not(self, logged_in):
        response = logged_in("customer").get("/mysqlpool/")
        assert response.status_code == 403
        assert "This page is for members of staff." in response.content.decode()

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_the_token(self, path):
        assert Client().get(path, headers=TOKEN).status_code == 200

    @pytest.mark.parametrize("path", ADDRESSES)
    @pytest.mark.parametrize("sent", ["Bearer wrong", "Bearer", "Bearer \xe4", "bearer  "])
    def test_a_wrong_token(self, path, sent, logged_in):
        response = logged_in("staff").get(path, headers={"Authorization": sent})
        assert response.status_code == 401
        assert response["WWW-Authenticate"].startswith("Bearer")

    @pytest.mark.parametrize("path", ADDRESSES[2:])
    def test_a_probe_without(self, path, logged_in):
        assert logged_in("staff").get(path).status_code == 401

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_the_query_string_has_no_say(self, path):
        assert Client().get(path, {"token": monitored.MYSQLPOOL_STATUS_TOKEN}).status_code in {302, 401}

    @pytest.mark.parametrize("token", [None, "", []])
    def test_no_token_is_set(self, token):
        with override_settings(MYSQLPOOL_STATUS_TOKEN=token):
            for sent in ("", "None", monitored.MYSQLPOOL_STATUS_TOKEN):
                assert Client().get("/mysqlpool/healthz", headers={"Authorization": f"Bearer {sent}"}).status_code == 401

    def test_two_tokens_while_one_is_replaced(self):
        with override_settings(MYSQLPOOL_STATUS_TOKEN=["the new one, which is long", monitored.MYSQLPOOL_STATUS_TOKEN]):
            assert Client().get("/mysqlpool/healthz", headers=TOKEN).status_code == 200

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_whom_the_site_lets_in(self, path):
        with override_settings(MYSQLPOOL_STATUS_ACCESS="tests.monitored.urls.everybody"):
            assert Client().get(path).status_code == 200

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_whom_it_does_not(self, path):
        with override_settings(MYSQLPOOL_STATUS_ACCESS="tests.monitored.urls.nobody"):
            assert Client().get(path).status_code in {302, 401}

    def test_a_site_without_users(self):
        with override_settings(MIDDLEWARE=monitored.MIDDLEWARE[:1]):
            response = Client().get("/mysqlpool/")
        assert response.status_code == 403
        assert "MYSQLPOOL_STATUS_TOKEN" in response.content.decode()

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("MYSQLPOOL_STATUS_TOKEN", "short", "shorter than 16 characters"),
            ("MYSQLPOOL_STATUS_TOKEN", 12345, "must be a string, or a list of strings"),
            ("MYSQLPOOL_STATUS_ACCESS", 5, "must be the dotted path of a function"),
            ("MYSQLPOOL_STATUS_ACCESS", "nowhere.at_all", "No module named 'nowhere'"),
        ],
    )
    def test_wrong_settings_are_found_at_the_import(self, name, value, words):
        with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured, match=words) as caught:
            access.check_settings()
        assert "short'" not in str(caught.value)  # the token itself


class TestWhatItTakesFromThePool:
    @pytest.mark.parametrize("path", [*ADDRESSES[:3], "/mysqlpool/status.js", "/mysqlpool/status.css"])
    def test_the_token_takes_no_connection(self, path, alias, logged_in):
        before = checkouts(alias)
        assert logged_in("staff").get(path, headers=TOKEN).status_code == 200
        assert checkouts(alias) == before

    @pytest.mark.parametrize("path", ADDRESSES[:3])
    def test_a_login_is_required_of_every_view(self, path, alias):
        """Django's middleware for that asks for the user before it asks if the view is exempt."""
        middleware = [*monitored.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
        before = checkouts(alias)
        with override_settings(MIDDLEWARE=middleware):
            assert Client().get(path, headers=TOKEN).status_code == 200
            assert Client().get("/mysqlpool/").status_code == 302
        assert checkouts(alias) == before

    def test_staff_are_looked_up_once_a_minute(self, alias, logged_in, monkeypatch):
        client = logged_in("staff")
        before = checkouts(alias)
        for _ in range(5):
            assert client.get("/mysqlpool/?format=json").status_code == 200
        assert checkouts(alias) == before + 1
        now = time.time()
        monkeypatch.setattr(signing.time, "time", lambda: now + access.CHECK_EVERY + 1)
        client.get("/mysqlpool/?format=json")
        assert checkouts(alias) == before + 2

    def test_who_is_no_longer_staff_is_refused_within_a_minute(self, alias, users, logged_in, monkeypatch):
        client = logged_in("staff")
        assert client.get("/mysqlpool/").status_code == 200
        User.objects.filter(username="staff").update(is_staff=False)
        now = time.time()
        monkeypatch.setattr(signing.time, "time", lambda: now + access.CHECK_EVERY + 1)
        assert client.get("/mysqlpool/").status_code == 403

    def test_a_logout_ends_it_at_once(self, logged_in):
        client = logged_in("staff")
        assert client.get("/mysqlpool/").status_code == 200
        remembered = client.cookies[access.COOKIE]
        assert (remembered["httponly"], remembered["samesite"], remembered["path"]) == (True, "Strict", "/mysqlpool/")
        client.logout()
        client.cookies[access.COOKIE] = remembered.value
        assert client.get("/mysqlpool/").status_code == 302

    def test_a_cookie_is_of_no_use_with_another_session(self, logged_in):
        staff, customer = logged_in("staff"), logged_in("customer")
        staff.get("/mysqlpool/")
        customer.cookies[access.COOKIE] = staff.cookies[access.COOKIE].value
        assert customer.get("/mysqlpool/").status_code == 403


class TestAnExhaustedPool:
    def test_the_page_goes_on_for_who_had_it_open(self, alias, logged_in, monkeypatch):
        client = logged_in("staff")
        client.get("/mysqlpool/")
        now = time.time()
        monkeypatch.setattr(signing.time, "time", lambda: now + access.CHECK_EVERY + 1)
        with exhausted(alias):
            response = get_in_thread_that_ends(client, "/mysqlpool/?format=json")
            assert response.status_code == 200
            (pool,) = (pool for pool in response.json()["pools"].values() if pool["aliases"] == [alias])
            assert (pool["out"], pool["idle"], pool["cap"]) == (1, 0, 1)
            (holder,) = pool["holders"]
            assert holder["alias"] == alias
            assert holder["seconds"] >= 0

    def test_who_comes_new_is_told_why_not_at_once(self, alias, logged_in):
        client = logged_in("staff")
        with exhausted(alias):
            before, began = checkouts(alias), time.monotonic()
            responses = [get_in_thread_that_ends(client, path) for path in ADDRESSES[:2]]
            assert time.monotonic() - began < 10  # not the pool's timeout, and twice
            assert checkouts(alias) == before
        assert [response.status_code for response in responses] == [503, 503]
        assert all(response["Retry-After"] for response in responses)
        assert "asked who you are" in responses[0].content.decode()
        assert alias not in responses[0].content.decode()

    def test_a_pool_timeout_of_the_lookup_is_told_like_that(self, alias, logged_in, monkeypatch):
        client = logged_in("staff")

        def fail(*_):
            raise PoolTimeout("none came free")

        monkeypatch.setattr("django.contrib.auth.middleware.get_user", fail)
        assert client.get("/mysqlpool/").status_code == 503

    def test_a_database_that_is_down(self, alias, logged_in, monkeypatch):
        """The page goes on without it, and it is not asked at each refresh."""
        client, new = logged_in("staff"), logged_in("staff")
        assert client.get("/mysqlpool/").status_code == 200
        now, asked = time.time(), []
        monkeypatch.setattr(signing.time, "time", lambda: now + access.CHECK_EVERY + 1)

        def fail(*_):
            asked.append(True)
            raise OperationalError(2002, "Can't connect")

        monkeypatch.setattr("django.contrib.auth.middleware.get_user", fail)
        assert {client.get("/mysqlpool/?format=json").status_code for _ in range(5)} == {200}
        assert len(asked) == 1
        assert new.get("/mysqlpool/").status_code == 503

    def test_a_lookup_that_hangs_is_alone(self, alias, logged_in, monkeypatch):
        client = logged_in("staff")
        assert client.get("/mysqlpool/").status_code == 200
        now = time.time()
        monkeypatch.setattr(signing.time, "time", lambda: now + access.CHECK_EVERY + 1)
        hangs, goes_on, get_user = threading.Event(), threading.Event(), django.contrib.auth.middleware.get_user

        def hang(request):
            hangs.set()
            assert goes_on.wait(60)
            return get_user(request)

        monkeypatch.setattr("django.contrib.auth.middleware.get_user", hang)
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(client.get, "/mysqlpool/?format=json")
            assert hangs.wait(60)
            assert client.get("/mysqlpool/?format=json").status_code == 200
            goes_on.set()
            assert waiting.result().status_code == 200

    def test_a_stranger_waits_for_nothing(self, alias):
        with exhausted(alias):
            assert get_in_thread_that_ends(Client()).status_code == 302

    def test_the_token_and_healthz(self, alias):
        with exhausted(alias):
            for path in ADDRESSES[:3]:
                assert get_in_thread_that_ends(Client(), path, **TOKEN).status_code == 200

    def test_readyz(self, alias):
        path = f"/mysqlpool/readyz?using={alias}"
        with exhausted(alias):
            before = checkouts(alias)
            response = get_in_thread_that_ends(Client(), path, **TOKEN)
            assert checkouts(alias) == before
            assert response.status_code == 503
            assert response["Retry-After"]
            said = response.content.decode()
            assert f"{alias}: 1 of 1 connections are out, 0 being opened, 0 wait" in said
            with override_settings(MYSQLPOOL_STATUS_ACCESS="tests.monitored.urls.everybody"):
                assert get_in_thread_that_ends(Client(), path).content == b"not ready\n"
        eventually(lambda: get_in_thread_that_ends(Client(), path, **TOKEN).status_code, lambda status: status == 200)

    def test_many_probes_are_one(self, alias):
        path = f"/mysqlpool/readyz?using={alias}"
        with exhausted(alias), ThreadPoolExecutor(20) as executor:
            answers = [executor.submit(Client().get, path, headers=TOKEN) for _ in range(20)]
            probing = [thread for thread in threading.enumerate() if thread.name == "mysqlpool-readyz"]
            assert len(probing) <= 1
            assert {answer.result().status_code for answer in answers} == {503}


class TestReadiness:
    @staticmethod
    def ask(alias):
        began = time.monotonic()
        answer = readiness.Probes().ask([alias])[alias]
        return answer, time.monotonic() - began

    def test_an_idle_connection(self, alias):
        connections[alias].ensure_connection()
        connections[alias].close()
        assert self.ask(alias)[0] is None

    def test_room_for_one(self, alias):
        assert self.ask(alias)[0] is None

    def test_a_busy_pool_is_ready(self, alias):
        """It is full at each look, and its connections come back."""
        stop = threading.Event()

        def work():
            while not stop.is_set():
                backend_pid(connections[alias])
                connections[alias].close()

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: numbers_of(alias)["waiting"], lambda waiting: waiting > 2)
            assert self.ask(alias)[0] is None
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def test_a_server_that_is_not_there(self, make_alias):
        wrapper = make_alias(pool={"timeout": 20}, HOST="127.0.0.1", PORT="1")
        answer, _ = self.ask(wrapper.alias)
        assert "connect" in answer.lower()

    def test_a_server_that_is_silent(self, make_alias, server):
        with Relay(server.host, server.port) as relay:
            wrapper = make_alias(pool={"timeout": 20}, HOST="127.0.0.1", PORT=str(relay.port))
            hold_at_once(wrapper.alias, 1)
            probes = readiness.Probes()
            relay.stall(new=True)
            began = time.monotonic()
            for _ in range(3):
                assert "has not answered" in probes.ask([wrapper.alias])[wrapper.alias]
            assert time.monotonic() - began < 3 * readiness.ANSWER_WITHIN + 2
            assert sum(thread.name == "mysqlpool-readyz" for thread in threading.enumerate()) == 1
            relay.resume()
            eventually(lambda: probes.ask([wrapper.alias])[wrapper.alias], lambda answer: answer is None)
            close_pool(wrapper.alias)

    def test_an_answer_holds_for_a_moment(self, alias):
        probes = readiness.Probes()
        for _ in range(5):
            assert probes.ask([alias]) == {alias: None}
        assert checkouts(alias) == 1

    def test_an_alias_that_is_none(self):
        assert Client().get("/mysqlpool/readyz?using=none", headers=TOKEN).status_code == 404
        assert Client().get("/mysqlpool/readyz?using=none").status_code == 401


class TestThePage:
    def test_its_policy_and_what_it_loads(self):
        response = Client().get("/mysqlpool/", headers=TOKEN)
        assert response["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert "no-store" in response["Cache-Control"]
        content = response.content.decode()
        assert "http" not in content.replace("http-equiv", "")
        assert "style=" not in content
        for name in ("js", "css"):
            (address,) = (part for part in content.split('"') if part.startswith(f"status.{name}?v="))
            asset = Client().get(f"/mysqlpool/{address}")
            assert asset.status_code == 200
            assert asset["Cache-Control"] == "public, max-age=31536000, immutable"
            assert "://" not in asset.content.decode().replace("http://www.w3.org/2000/svg", "")

    def test_what_is_not_there(self):
        assert Client().get("/mysqlpool/views.py", headers=TOKEN).status_code == 404

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_nothing_is_posted(self, path):
        assert Client().post(path, headers=TOKEN).status_code == 405

    def test_the_figures(self, alias):
        backend_pid(connections[alias])
        connections[alias].close()
        data = Client().get("/mysqlpool/?format=json", headers=TOKEN).json()
        assert data["process"]["pid"] == os.getpid()
        name = connections[alias].pool.name
        pool = data["pools"][name]
        assert (pool["cap"], pool["idle"], pool["out"], pool["waiting"], pool["checkouts"]) == (1, 1, 0, 0, 1)
        assert pool["holders"] == []
        assert any(event["pool"] == name and event["text"] == "connection opened" for event in data["events"])

    def test_no_secret_is_told(self, make_alias):
        wrapper = make_alias()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 'secret value'")
        told = Client().get("/mysqlpool/?format=json", headers=TOKEN).content.decode()
        assert wrapper.alias in told
        for secret in (wrapper.settings_dict["PASSWORD"], "secret value", monitored.MYSQLPOOL_STATUS_TOKEN):
            assert secret not in told


class TestHistory:
    NUMBERS: ClassVar = {"out": 1, "opening": 0, "idle": 2, "waiting": 3, "checkouts": 10, "waits": 4, "timeouts": 0}

    def test_it_is_bounded(self):
        history = History()
        for second in range(2 * POINTS):
            history._remember(time.monotonic() + second, {"pool": self.NUMBERS})
            history.note(f"pool {second}", "opened", "connection opened")
        shown = history.of_pool("pool")
        assert {len(column) for column in shown.values()} == {POINTS}
        assert shown["waiting"][0] == 3
        assert len(history.events()) == 50

    def test_rates(self):
        history = History()
        now = time.monotonic()
        for second in range(-60, 1):
            history._remember(now + second, {"pool": {**self.NUMBERS, "checkouts": 1000 + 7 * second}})
        assert history.rates_of("pool") == {"checkouts": 7.0, "waits": 0.0, "timeouts": 0.0}
        assert history.rates_of("none") == {"checkouts": 0.0, "waits": 0.0, "timeouts": 0.0}
        assert history.of_pool("none") == {"ago": [], "out": [], "opening": [], "idle": [], "waiting": []}

    def test_a_pool_that_is_gone_is_forgotten(self):
        history = History()
        history._remember(1.0, {"gone": self.NUMBERS})
        history._remember(2.0, {"here": self.NUMBERS})
        assert history.of_pool("gone")["ago"] == []

    def test_what_happens_again_is_counted(self, monkeypatch):
        history = History()
        for _ in range(100):
            history.note("pool", "timeout", "a checkout got no connection")
        (event,) = history.events()
        assert event["count"] == 100
        later = time.monotonic() + SAME_FOR + 1
        monkeypatch.setattr("django_mysqlpool.monitoring.history.time.monotonic", lambda: later)
        history.note("pool", "timeout", "a checkout got no connection")
        assert [event["count"] for event in history.events()] == [1, 100]

    def test_the_maintenance_thread_fills_it(self, alias):
        name = connections[alias].pool.name

        def points():
            return Client().get("/mysqlpool/?format=json", headers=TOKEN).json()["pools"][name]["history"]

        with exhausted(alias):
            eventually(lambda: points()["out"][-2:], lambda out: out == [1, 1])
        eventually(lambda: points()["idle"][-1:], lambda idle: idle == [1])
        ago = points()["ago"]
        assert ago == sorted(ago, reverse=True)

    def test_a_child_of_a_fork_begins_anew(self, alias):
        backend_pid(connections[alias])
        connections[alias].close()
        from django_mysqlpool.monitoring.history import history

        assert history.events()
        child = os.fork()
        if not child:
            os._exit(1 if history.events() else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_nothing_is_imported_unless_asked_for(self):
        code = (
            "import os, sys, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup();"
            "from django.test import Client; assert Client().get('/count/').status_code == 200;"
            "print([name for name in sys.modules if name.startswith('django_mysqlpool.monitoring')])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == "[]"


@pytest.mark.slow
class TestUnderAWebServer:
    @pytest.mark.parametrize("kind", ["gunicorn", "uvicorn wrapped"])
    def test_it_shows_what_the_load_does(self, kind, serve):
        site = serve(kind, pool={"pool_size": 2, "max_overflow": 0}, DJANGO_SETTINGS_MODULE="tests.monitored.settings")

        def figures():
            (pool,) = site.client.get("/mysqlpool/?format=json", headers=TOKEN).json()["pools"].values()
            return pool

        with ThreadPoolExecutor(5) as executor:
            assert site.get("/count/").status_code == 200  # there is a pool
            blocked = [executor.submit(site.get, "/block/?seconds=4&secret=1") for _ in range(4)]
            eventually(figures, lambda pool: (pool["out"], pool["waiting"]) == (2, 2))
            began = time.monotonic()
            assert site.client.get("/mysqlpool/healthz", headers=TOKEN).status_code == 200
            assert time.monotonic() - began < 2
            assert {holder["work"] for holder in figures()["holders"]} == {"GET /block/"}
            eventually(lambda: figures()["history"]["waiting"], lambda waiting: 2 in waiting)
            answer = site.client.get("/mysqlpool/readyz", headers=TOKEN)
            assert answer.status_code == 503
            assert "2 of 2 connections are out" in answer.text
            assert {request.result().status_code for request in blocked} == {200}
        eventually(
            lambda: site.client.get("/mysqlpool/readyz", headers=TOKEN).status_code, lambda status: status == httpx.codes.OK
        )
