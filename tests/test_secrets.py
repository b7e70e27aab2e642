"""No password in what shows the variables of frames: error pages, mails to ADMINS, Sentry, logs, debuggers."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import pprint
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import RequestFactory, override_settings
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

from django_mysqlpool import PoolTimeout
from django_mysqlpool.backends.mysqlpool.base import DatabaseWrapper
from django_mysqlpool.mysqlpool.masking import ConnectionParams, MaskedBytes, MaskedStr, WithoutFramesOf
from django_mysqlpool.mysqlpool.pool.registry import registry
from tests import DRIVER
from tests.helpers import eventually, mysqlclient_only

pytestmark = [pytest.mark.python, pytest.mark.driver]

#: Long enough to be cut by what shows at most 80 characters of a string, as the tokens of clouds are.
SECRET = "Bare7-" * 30
PART = SECRET[:6]


def frames_of(error: BaseException) -> list:
    """Those of an error and of all that it was chained to."""
    pending, seen, frames = [error], set(), []
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            frames += [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
            pending += [one.__cause__, one.__context__]
    return frames


def variables(frames) -> str:
    """As a debugger or a dump shows them, one by one."""
    values = [value for frame in frames for value in frame.f_locals.values()]
    return "\n".join(show(value) for value in values for show in (repr, pprint.pformat))


class Mailed(AdminEmailHandler):
    """Keeps what the ADMINS would get, in production."""

    def send_mail(self, subject, message, *args, html_message=None, **kwargs):
        self.message = subject + message + html_message


def mailed(error: BaseException) -> str:
    record = logging.LogRecord("django.request", logging.ERROR, __file__, 1, "failed", (), error_info(error))
    record.request = RequestFactory().get("/")
    handler = Mailed(include_html=True)
    with override_settings(DEBUG=False):
        handler.emit(record)
    return handler.message


def error_info(error: BaseException):
    return type(error), error, error.__traceback__


def sent_to_sentry(error: BaseException) -> str:
    """With nothing scrubbed by key."""
    sentry_sdk = pytest.importorskip("sentry_sdk")
    options = sentry_sdk.Client(default_integrations=False, include_local_variables=True, max_value_length=10**6).options
    event, _ = sentry_sdk.utils.event_from_exception(error, options)
    frames = frames_of(error)
    event["extra"] = {"params": [frame.f_locals.get("conn_params") for frame in frames]}
    return json.dumps(sentry_sdk.serializer.serialize(event)) + repr(event)


def shown_by_rich(error: BaseException) -> str:
    rich = pytest.importorskip("rich.traceback")
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=10**4)
    console.print(rich.Traceback.from_exception(*error_info(error), show_locals=True))
    return console.file.getvalue()


def page(error: BaseException) -> str:
    reporter = ExceptionReporter(RequestFactory().get("/"), *error_info(error))
    return reporter.get_traceback_html() + reporter.get_traceback_text()


def logged(error: BaseException) -> str:
    return logging.Formatter().formatException(error_info(error))


WITH_LOCALS = {
    "page": page,
    "mail": mailed,
    "sentry": sent_to_sentry,
    "rich": shown_by_rich,
    "traceback": lambda error: "".join(
        traceback.TracebackException(*error_info(error), capture_locals=True, max_group_depth=9).format()
    ),
    "variables": lambda error: variables(frames_of(error)),
    "log": logged,
}


def assert_tells_no_secret(error: BaseException, *, below: str | None = "get_new_connection") -> None:
    """In none of the ways to show it; ``below`` is the function of a frame that must be there, or nothing is proved."""
    names = [frame.f_code.co_name for frame in frames_of(error)]
    assert below is None or below in names
    for how, show in WITH_LOCALS.items():
        shown = show(error)
        assert type(error).__name__ in shown or how == "variables"
        assert PART not in shown, f"{how} shows it: ...{shown[max(shown.index(PART) - 300, 0) : shown.index(PART) + 50]}"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return gone.getsockname()[1]


GREETING = (
    b"\x0a8.0.99\0"
    + struct.pack("<I", 7)
    + b"abcdefgh\0"
    + struct.pack("<HBHH", 0xFFFF & ~0x0800, 45, 2, 0x00FF)
    + bytes([21])
    + bytes(10)
    + b"ijklmnopqrst\0"
    + b"caching_sha2_password\0"
)


@contextmanager
def asking_for_the_password(path: str, *, then_silent: bool = False) -> Iterator[threading.Event]:
    """A server that has itself told the password in clear, over a socket file, and then hangs up or falls silent."""
    told, done = threading.Event(), threading.Event()

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.settimeout(30)
            client.sendall(struct.pack("<I", len(GREETING)) + GREETING)
            client.recv(65536)
            client.sendall(b"\2\0\0\2\1\4")  # "perform full authentication"
            seen = client.recv(65536)
            if SECRET.encode() in seen:
                told.set()
            if then_silent:
                done.wait(30)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield told
        finally:
            done.set()
            thread.join()


@pytest.fixture(params=[True, False], ids=["pooled", "not pooled"])
def pool(request):
    return request.param


class TestAFailedConnect:
    def fails(self, wrapper, **below) -> BaseException:
        with pytest.raises(Exception) as caught:
            wrapper.ensure_connection()
        assert not isinstance(caught.value, ImproperlyConfigured)
        assert_tells_no_secret(caught.value, **below)
        return caught.value

    def test_no_server(self, make_alias, pool):
        error = self.fails(make_alias(pool=pool, HOST="127.0.0.1", PORT=closed_port(), PASSWORD=SECRET))
        assert error.args[0] in {2002, 2003}

    def test_access_denied(self, make_alias, pool):
        assert self.fails(make_alias(pool=pool, PASSWORD=SECRET)).args[0] == 1045

    @pytest.mark.parametrize("key", ["password", "passwd"])
    @pytest.mark.filterwarnings("ignore:'passwd' is deprecated")
    def test_of_a_password_in_the_options(self, make_alias, pool, key):
        self.fails(make_alias(pool=pool, PASSWORD="", options={key: SECRET}))

    def test_no_tls(self, make_alias, pool):
        strictly = {"ssl_mode": "VERIFY_CA"} if DRIVER == "mysqlclient" else {"ssl_verify_cert": True}
        options = {"ssl": {"ca": "/no/such/file", "key": f"/no/{SECRET}"}, **strictly}
        error = self.fails(make_alias(pool=pool, PASSWORD=SECRET, options=options))
        assert error.args[0] == 2026 or isinstance(error, FileNotFoundError)

    def test_what_is_no_argument_of_the_driver(self, make_alias, pool):
        self.fails(make_alias(pool=pool, PASSWORD=SECRET, options={"no_such_option": 1}))

    def test_a_password_of_the_wrong_type(self, make_alias, pool):
        self.fails(make_alias(pool=pool, PASSWORD=[SECRET]))

    def test_a_server_that_hangs_up_once_it_was_told(self, make_alias, pool, tmp_path):
        with asking_for_the_password(str(tmp_path / "s")) as told:
            self.fails(make_alias(pool=pool, HOST=str(tmp_path / "s"), PASSWORD=SECRET))
            assert told.is_set() or DRIVER == "mysqlclient"

    def test_what_was_being_handled_keeps_its_frames(self, make_alias):
        wrapper = make_alias(PASSWORD=SECRET)
        try:
            json.loads("{")
        except ValueError:
            error = self.fails(wrapper)
        assert "raw_decode" in [frame.f_code.co_name for frame in frames_of(error)]

    @pytest.mark.skipif(DRIVER != "pymysql", reason="mysqlclient hears signals only when it is connected")
    def test_an_interrupt(self, make_alias, tmp_path):
        wrapper = make_alias(HOST=str(tmp_path / "s"), PASSWORD=SECRET)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with asking_for_the_password(str(tmp_path / "s"), then_silent=True) as told:
                in_time = threading.Thread(target=lambda: told.wait(30) and os.kill(os.getpid(), signal.SIGALRM))
                in_time.start()
                with pytest.raises(KeyboardInterrupt) as caught:
                    wrapper.ensure_connection()
                in_time.join()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert_tells_no_secret(caught.value)

    def test_while_it_connects(self, make_alias, tmp_path):
        alias = make_alias(HOST=str(tmp_path / "s"), PASSWORD=SECRET, options={"connect_timeout": 30}).alias

        def connect() -> None:
            with pytest.raises(Exception):
                connections[alias].ensure_connection()

        with asking_for_the_password(str(tmp_path / "s"), then_silent=True) as told:
            thread = threading.Thread(target=connect)
            thread.start()
            if DRIVER == "pymysql":
                assert told.wait(30)
            frames: list = []
            eventually(lambda: self.stack_of(thread, frames), lambda names: {"open_connection", "__init__"} <= set(names))
            assert PART not in variables(frames)
        thread.join(30)

    def stack_of(self, thread, frames) -> list[str]:
        frames[:] = [frame for frame, _ in traceback.walk_stack(sys._current_frames()[thread.ident])]
        return [frame.f_code.co_name for frame in frames]


class TestOtherErrors:
    def test_pool_timeout(self, make_alias):
        scarce = {"pool_size": 1, "max_overflow": 0, "timeout": 0}
        wrapper = make_alias(pool=scarce)
        other = make_alias(pool=scarce, like=wrapper.alias)
        other.settings_dict["PASSWORD"] = SECRET  # which does not make it another pool's
        wrapper.ensure_connection()
        with pytest.raises(PoolTimeout) as caught:
            other.ensure_connection()
        assert_tells_no_secret(caught.value)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"pool": {"pool_siz": 5}},
            {"OPTIONS": [("passwd", SECRET)]},
            {"options": {"connect_timeout": "1", "passwd": SECRET}},
        ],
        ids=lambda wrong: next(iter(wrong)),
    )
    def test_wrong_settings(self, make_alias, wrong):
        with pytest.raises(ImproperlyConfigured) as caught:
            make_alias(**wrong, PASSWORD=SECRET)
        assert PART not in str(caught.value)
        assert PART not in variables(
            frame for frame in frames_of(caught.value) if "django_mysqlpool" in frame.f_globals["__name__"]
        )

    def test_a_wrong_isolation_level(self, make_alias):
        wrapper = make_alias(options={"isolation_level": "none"}, PASSWORD=SECRET)
        with pytest.raises(ImproperlyConfigured) as caught:
            wrapper.ensure_connection()
        assert_tells_no_secret(caught.value, below="get_connection_params")

    @mysqlclient_only("change_user logs in")
    def test_a_reset_that_is_refused(self, make_alias, caplog, observer):
        caplog.set_level(logging.DEBUG, "django_mysqlpool")
        wrapper = make_alias()
        with wrapper.cursor() as cursor:
            cursor.execute("SET @a = 1")
        wrapper.settings_dict["PASSWORD"] = SECRET
        seen: list[BaseException] = []
        original = type(wrapper.driver).reset

        def reset(driver, connection, params):
            try:
                return original(driver, connection, params)
            except Exception as error:
                seen.append(error)
                raise

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(wrapper.driver), "reset", reset)
            wrapper.close()
        assert_tells_no_secret(seen[0], below="reset")
        eventually(lambda: caplog.text, lambda text: "could not be cleaned" in text)
        assert PART not in caplog.text

    def test_the_maintenance_thread(self, make_alias, caplog):
        caplog.set_level(logging.DEBUG, "django_mysqlpool")
        wrapper = make_alias(pool={"min_idle": 2})
        wrapper.ensure_connection()
        alias, password = wrapper.alias, wrapper.settings_dict["PASSWORD"]
        connections.settings[alias]["PASSWORD"] = SECRET
        try:
            eventually(lambda: caplog.text, lambda text: "could not be opened" in text)
        finally:
            connections.settings[alias]["PASSWORD"] = password
        assert PART not in caplog.text
        pool = wrapper.pool
        assert_tells_no_secret(pool.connector.last_connect_error[0], below=None)


class TestAnEngineWithAPasswordOfItsOwn:
    """``get_connection_params()`` is where the password that a cloud's service tells is put in."""

    def engine(self, make_alias, get, **entry):
        wrapper = make_alias(**entry)

        class Fetching(DatabaseWrapper):
            def get_connection_params(self):
                return get(super().get_connection_params())

        return Fetching(wrapper.settings_dict, wrapper.alias)

    @pytest.mark.parametrize(
        "get",
        [
            lambda params: {**params, "password": SECRET},
            lambda params: dict(params) | {"password": SECRET},
            lambda params: params | {"password": SECRET},
            lambda params: params.update(password=SECRET) or params,
            lambda params: params.__setitem__("password", SECRET) or params,
            lambda params: {**params, "ssl": {"key": SECRET}, "no_such_option": 1},
            lambda params: {**params, "init_command": f"SET no_such_password = '{SECRET}'"},
            lambda params: {**params, "password": SECRET.encode()},
        ],
    )
    def test_may_return_any_dict(self, make_alias, get, pool):
        wrapper = self.engine(make_alias, get, pool=pool)
        with pytest.raises(Exception) as caught:
            wrapper.connect()
        assert_tells_no_secret(caught.value)

    def test_may_put_it_in_where_django_connects(self, make_alias, pool):
        wrapper = make_alias(pool=pool)

        class Fetching(DatabaseWrapper):
            def get_new_connection(self, conn_params):
                return super().get_new_connection(dict(conn_params, password=SECRET))

        with pytest.raises(Exception, match="Access denied") as caught:
            Fetching(wrapper.settings_dict, wrapper.alias).connect()
        assert_tells_no_secret(caught.value)

    def test_a_mixin_and_a_subclass_are_asked_too(self, make_alias):
        class Mixin:
            def get_connection_params(self):
                return {**super().get_connection_params(), "password": SECRET}

        class Engine(Mixin, DatabaseWrapper):
            pass

        class Further(Engine):
            def get_connection_params(self):
                return dict(super().get_connection_params())

        settings = make_alias().settings_dict
        for engine in (Engine, Further):
            params = engine(settings, "any").get_connection_params()
            assert params["password"] == SECRET
            assert PART not in repr(params)

    def test_keeps_its_frames_where_it_fails_itself(self, make_alias):
        def fetch(params):
            raise LookupError("no token today")

        wrapper = self.engine(make_alias, fetch)
        with pytest.raises(LookupError) as caught:
            wrapper.connect()
        assert "fetch" in [frame.f_code.co_name for frame in frames_of(caught.value)]


class TestWhatIsKept:
    def test_shows_none_either(self, make_alias):
        ssl = {} if DRIVER == "pymysql" else {"ssl": {"key": f"/no/{SECRET}"}}
        wrapper = make_alias(options={"init_command": f"SET @token = '{SECRET}'", **ssl})
        wrapper.settings_dict["OPTIONS"].pop("ssl", None)
        with wrapper.cursor() as cursor:
            cursor.execute(f"SELECT '{SECRET}'")
            cursor.fetchall()
            lease = wrapper.lease
            assert lease.statement == f"SELECT '{SECRET}'"
        (pool,) = (pool for pool in registry.pools() if wrapper.alias in pool.aliases)
        kept = [
            wrapper,
            lease,
            pool,
            lease.session,
            pool.identity,
            vars(pool),
            wrapper.bound,
            wrapper.get_connection_params(),
        ]
        for value in kept:
            assert PART not in repr(value)
            assert wrapper.settings_dict["PASSWORD"] not in repr(value)

    def test_a_rotated_password_is_used_and_the_pool_stays(self, make_alias, observer):
        wrapper = make_alias()
        wrapper.ensure_connection()
        pool = wrapper.pool
        wrapper.close()
        wrapper.close_pool()
        user = wrapper.settings_dict["USER"]
        observer.query(f"ALTER USER '{user}'@'%%' IDENTIFIED BY 'another'")
        wrapper.settings_dict["PASSWORD"] = "another"
        wrapper.ensure_connection()
        assert wrapper.pool is pool


class TestConnectionParams:
    @pytest.mark.parametrize(
        "params",
        [
            {"password": SECRET},
            {"passwd": SECRET},
            {"ssl_key_password": SECRET},
            {"auth_token": SECRET},
            {"password": SECRET.encode()},
            {"password": [SECRET]},
            {"ssl": {"key": SECRET}},
            {"ssl": {"password": SECRET}},
            {"init_command": f"SET @api_token = '{SECRET}'"},
            {"init_command": f"ALTER USER me IDENTIFIED BY '{SECRET}'"},
        ],
        ids=lambda params: "-".join(params),
    )
    def test_show_no_secret(self, params):
        masked = ConnectionParams(params, host="db.example.com")
        for shown in (repr(masked), str(masked), f"{masked}", pprint.pformat(masked)):
            assert PART not in shown
            assert "db.example.com" in shown
        assert masked == {**params, "host": "db.example.com"}
        assert PART not in repr(copy.copy(masked))
        assert PART not in repr(copy.deepcopy(masked))
        assert pickle.loads(pickle.dumps(masked)) == masked

    def test_copies_show_none(self):
        masked = ConnectionParams(password=SECRET, ssl={"key": SECRET})
        for copied in ({**masked}, dict(masked), masked.copy(), masked | {}, {} | masked, list(masked.values())):
            assert PART not in repr(copied)

    def test_show_what_is_none(self):
        params = {
            "user": "me",
            "database": "shop",
            "charset": "utf8mb4",
            "ssl": {"ca": "/ca.pem"},
            "auth_plugin": "x",
            "init_command": "SET sql_mode='ANSI'",
            "read_default_file": "/etc/my.cnf",
            "password": "",
        }
        assert repr(ConnectionParams(params)) == repr(params)

    def test_the_values_are_strings_and_bytes_as_any(self):
        text, raw = ConnectionParams(password=SECRET)["password"], MaskedStr(SECRET).encode("latin1")
        assert isinstance(text, MaskedStr)
        assert (str(text), f"{text}", json.dumps(text)) == (SECRET, SECRET, json.dumps(SECRET))
        assert {text: 1}[SECRET] == 1
        assert raw == SECRET.encode()
        assert (raw + b"\0", b"\0" + raw) == (SECRET.encode() + b"\0", b"\0" + SECRET.encode())
        assert (text[0], raw[0]) == (SECRET[0], ord(SECRET[0]))
        for shown in (text[:50], raw[:50], raw + b"\0", b"\0" + raw, MaskedBytes(raw)):
            assert PART not in repr(shown)


class TestWithoutFramesOf:
    def test_copes_with_errors_that_are_not_as_others(self):
        class Strange(Exception):
            __hash__ = None

            def __eq__(self, other):
                raise AssertionError

        error = Strange()
        error.__context__ = second = Strange()
        second.__context__ = error
        with pytest.raises(Strange), WithoutFramesOf("nowhere"):
            raise error

    def test_leaves_nothing_alone_without_an_error(self):
        with WithoutFramesOf("tests"):
            pass
