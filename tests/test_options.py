"""What the settings may say, and what is said where they are wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy.pool
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_mysqlpool.mysqlpool.backend import other_names
from django_mysqlpool.mysqlpool.backend import settings as settings_module
from django_mysqlpool.mysqlpool.backend.settings import pool_classes, pool_options
from tests.helpers import CustomPool, backend_pid, discard, status_of

pytestmark = [pytest.mark.django, pytest.mark.sqlalchemy]

ROOT = Path(__file__).parents[1]
CLASSES = ["QueuePool", "NullPool", "SingletonThreadPool", "StaticPool", "AssertionPool"]


def read(pool=None, **settings):
    entry = {"OPTIONS": {} if pool is None else {"pool": pool}, "CONN_MAX_AGE": 0}
    return pool_options("shop", {**entry, **settings})


class TestTheSettingsOf2013:
    def test_no_setting_at_all_is_a_queue_pool(self):
        assert read().pool_class is None
        assert read().pool_class_name == "QueuePool"

    @pytest.mark.parametrize("name", CLASSES)
    def test_each_class_works(self, name, make_alias):
        with override_settings(MYSQLPOOL_BACKEND=name):
            wrapper = make_alias()
            for _ in range(3):
                assert backend_pid(wrapper)
                wrapper.close()
            assert status_of(wrapper)["pool_class"] == name
            assert status_of(wrapper)["out"] == 0

    @pytest.mark.parametrize("name", ["QueuePool", "SingletonThreadPool", "StaticPool", "AssertionPool"])
    def test_close_pool_empties_each_class(self, name, make_alias):
        with override_settings(MYSQLPOOL_BACKEND=name):
            wrapper = make_alias()
            first = backend_pid(wrapper)
            wrapper.close()
            wrapper.close_pool()
            assert status_of(wrapper)["open"] == 0
            assert backend_pid(wrapper) != first

    def test_the_documented_example(self):
        with override_settings(MYSQLPOOL_BACKEND="QueuePool", MYSQLPOOL_ARGUMENTS={"use_threadlocal": False}):
            assert not read().use_threadlocal

    def test_arguments_reach_the_class_and_the_users_dict_stays(self, make_alias):
        arguments = {"pool_size": 3, "max_overflow": 4, "use_threadlocal": True, "recycle": 60}
        with override_settings(MYSQLPOOL_ARGUMENTS=arguments):
            wrapper = make_alias()
            wrapper.ensure_connection()
            assert status_of(wrapper)["cap"] == 7
        assert arguments == {"pool_size": 3, "max_overflow": 4, "use_threadlocal": True, "recycle": 60}

    def test_assertion_pool_says_where_the_other_checkout_was(self, make_alias):
        with override_settings(MYSQLPOOL_BACKEND="AssertionPool"):
            one = make_alias()
            two = make_alias(like=one.alias)
            one.ensure_connection()
            with pytest.raises(AssertionError, match="already checked out at"):
                two.ensure_connection()


class TestOrder:
    def test_the_alias_goes_before_the_arguments(self):
        with override_settings(MYSQLPOOL_ARGUMENTS={"pool_size": 3, "timeout": 7}):
            assert dict(read({"pool_size": 4}).arguments) == {"pool_size": 4, "timeout": 7, "reset_on_return": None}

    def test_an_alias_with_another_class_takes_what_that_class_knows(self):
        with override_settings(MYSQLPOOL_ARGUMENTS={"pool_size": 3, "recycle": 60}):
            options = read({"pool_class": "NullPool"})
        assert options.pool_class is sqlalchemy.pool.NullPool
        assert options.recycle == 60

    def test_a_dotted_path_or_a_class(self):
        assert read({"pool_class": "tests.helpers.CustomPool"}).pool_class.__name__ == "CustomPool"
        assert read({"pool_class": CustomPool, "pool_size": 2}).pool_class is CustomPool

    def test_true_is_the_defaults(self):
        assert read(True) == read() == read({})

    def test_every_key_of_the_design_is_known(self):
        options = read(
            {
                "pool_class": "QueuePool",
                "pool_size": 5,
                "max_overflow": 10,
                "timeout": 30,
                "use_lifo": True,
                "recycle": None,
                "idle_timeout": 600,
                "min_idle": 0,
                "ping_after": 30,
                "reset": "dirty",
                "release": "request",
                "max_waiting": None,
                "leak_after": None,
            }
        )
        assert options.pool_class is None

    def test_false_is_no_pool(self):
        assert read(False) is None

    def test_pre_ping_is_a_ping_at_every_checkout(self):
        assert read({"pre_ping": True}).ping_after == 0


WRONG = [
    ({"pool_siz": 5}, "has the key 'pool_siz', which QueuePool does not know. Did you mean 'pool_size'?"),
    ({"POOL_SIZE": 5}, "has the key 'POOL_SIZE', which QueuePool does not know. Did you mean 'pool_size'?"),
    ({"pool_size": "5"}, r"['pool_size'] is '5'; it must be a whole number, 0 or more"),
    ({"pool_size": -1}, r"['pool_size'] is -1; it must be a whole number, 0 or more"),
    ({"pool_size": True}, r"['pool_size'] is True; it must be a whole number"),
    ({"max_overflow": -2}, r"['max_overflow'] is -2"),
    ({"timeout": -1}, r"['timeout'] is -1; it must be a number of seconds"),
    ({"recycle": 0}, r"['recycle'] is 0"),
    ({"use_lifo": 1}, r"['use_lifo'] is 1; it must be True or False"),
    ({"reset": "never"}, r"['reset'] is 'never'; it must be 'dirty' or 'always'"),
    ({"release": "statement"}, r"['release'] is 'statement'; it must be 'request'"),
    ({"reset_on_return": "commit"}, r"['reset_on_return'] is 'commit'"),
    ({"leak_after": 0}, r"['leak_after'] is 0; it must be None or a number of seconds above 0"),
    ({"discard_on_error": len}, r"it must be None or the dotted path of a function"),
    ({"max_waiting": 1.5}, r"['max_waiting'] is 1.5"),
    ({"creator": len}, "has the key 'creator'"),
    ({"pool_class": "QueuPool"}, "is 'QueuPool', which sqlalchemy.pool does not have. Did you mean 'QueuePool'?"),
    (
        {"pool_class": "Other"},
        "Use one of AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool, or the dotted",
    ),
    ({"pool_class": "AsyncAdaptedQueuePool"}, "a pool for asyncio drivers; mysqlclient is not one. Use 'QueuePool'"),
    ({"pool_class": "no.such.Pool"}, "is 'no.such.Pool', which can't be imported"),
    ({"pool_class": "collections.OrderedDict"}, "which is not a pool class of SQLAlchemy"),
    ({"pool_class": 5}, "is 5, which is not a pool class of SQLAlchemy"),
    ({"pool_class": "NullPool", "pool_size": 5}, "has the key 'pool_size', which NullPool does not know"),
    ({"logging_name": 5}, r"['logging_name'] is 5; it must be None or a string"),
    ({"echo": "loud"}, r"['echo'] is 'loud'; it must be True, False or 'debug'"),
    ({"events": 7}, r"['events'] is 7; it must be a list of pairs (function, name of an event of SQLAlchemy's pools)"),
    ({"events": [("connect", len)]}, "it must be a list of pairs (function, name of an event"),
    (
        {"events": [(discard, "conect"), (discard, "checkin")]},
        r"['events'] names the event 'conect', which SQLAlchemy's pools do not have. Did you mean 'connect'? Known events:",
    ),
    ({"pool_class": "tests.helpers.CustomPool", "pool_size": 2, "fussy": True}, "CustomPool refuses its arguments: fussy"),
    ("yes", "OPTIONS['pool'] is 'yes'; it must be True, False or a dict"),
]


class TestErrors:
    @pytest.mark.parametrize(("pool", "message"), WRONG, ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value))[:40])
    def test_they_name_alias_key_value_and_what_would_be_right(self, pool, message):
        with pytest.raises(ImproperlyConfigured) as caught:
            read(pool)
        assert message in str(caught.value)
        assert "(database alias 'shop')" in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "advice"),
        [
            ("pool_timeout", "'timeout'"),
            ("max_lifetime", "'recycle'"),
            ("max_idle", "'idle_timeout'"),
            ("maxLifetime", "'recycle'"),
            ("POOL_RECYCLE", "'recycle'"),
            ("min_size", "'min_idle'"),
            ("max_size", "'pool_size', with 'max_overflow': 0"),
            ("connectionTimeout", "'timeout'"),
        ],
    )
    def test_what_another_pools_option_is_called_here(self, key, advice):
        with pytest.raises(ImproperlyConfigured, match=re.escape(f"does not know. Here that is {advice}. Known keys:")):
            read({key: 1})

    def test_each_name_of_another_pool_is_none_of_ours_and_leads_to_one(self):
        ours = pool_classes().known_keys(None) | settings_module._OWN
        assert not {name for name in ours if other_names._plain(name) in other_names._ADVICE}
        assert other_names._OPTIONS.keys() <= ours

    def test_all_mistakes_of_an_alias_are_told_at_once(self):
        common = {"pool_class": "NullPool", "recycle": 0}
        with override_settings(MYSQLPOOL_ARGUMENTS=common), pytest.raises(ImproperlyConfigured) as caught:
            read({"pool_siz": 5, "timeout": "30", "max_overflow": -2}, CONN_MAX_AGE=60)
        told = str(caught.value)
        for part in (
            "CONN_MAX_AGE is 60",
            "MYSQLPOOL_ARGUMENTS has the key 'pool_class', which QueuePool does not know. That is the setting",
            "OPTIONS['pool'] has the key 'pool_siz', which QueuePool does not know. Did you mean 'pool_size'?",
            "MYSQLPOOL_ARGUMENTS['recycle'] is 0",
            "OPTIONS['pool']['timeout'] is '30'",
            "OPTIONS['pool']['max_overflow'] is -2",
        ):
            assert told.count(part) == 1
        assert told.count("(database alias 'shop')") == 1

    @pytest.mark.parametrize(
        ("options", "told"),
        [(None, "OPTIONS is None; it must be a dict."), ([("passwd", "hidden")], "OPTIONS is a list; it must be a dict.")],
    )
    def test_options_that_are_none(self, options, told):
        with pytest.raises(ImproperlyConfigured) as caught:
            read(OPTIONS=options)
        assert str(caught.value) == f"{told} (database alias 'shop')"

    @pytest.mark.parametrize("key", ["connect_timeout", "read_timeout", "write_timeout"])
    @pytest.mark.parametrize(
        ("driver", "value", "words"),
        [
            ("mysqlclient", "10", "a whole number of seconds"),
            ("mysqlclient", 1.5, "a whole number of seconds"),
            ("mysqlclient", None, "a whole number of seconds"),
            ("PyMySQL", "10", "a number of seconds"),
            ("PyMySQL", -1, "a number of seconds"),
        ],
    )
    def test_timeouts_of_the_driver(self, key, driver, value, words):
        with pytest.raises(ImproperlyConfigured) as caught:
            pool_options("shop", {"OPTIONS": {key: value}}, driver)
        assert f"OPTIONS['{key}'] is {value!r}; it must be " in str(caught.value)
        assert words in str(caught.value)

    def test_timeouts_that_the_driver_takes(self):
        assert pool_options("shop", {"OPTIONS": {"connect_timeout": 10, "read_timeout": 0}}) is not None
        pymysql = {"connect_timeout": 1.5, "read_timeout": None, "write_timeout": 2}
        assert pool_options("shop", {"OPTIONS": pymysql}, "PyMySQL") is not None
        assert pool_options("shop", {"OPTIONS": {"read_timeout": 0}}, "PyMySQL") is not None  # no limit
        with pytest.raises(ImproperlyConfigured, match="'connect_timeout'. is 0; it must be a number of seconds above 0"):
            pool_options("shop", {"OPTIONS": {"connect_timeout": 0}}, "PyMySQL")
        assert pool_options("shop", {"OPTIONS": {"pool": False, "read_timeout": "x"}}) is None

    @pytest.mark.parametrize("max_age", [None, 60])
    def test_persistent_connections_are_refused_in_djangos_words(self, max_age):
        with pytest.raises(ImproperlyConfigured, match="^Pooling doesn't support persistent connections."):
            read(CONN_MAX_AGE=max_age)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"MYSQLPOOL_BACKEND": "Queue"}, "MYSQLPOOL_BACKEND is 'Queue', which sqlalchemy.pool does not have"),
            ({"MYSQLPOOL_ARGUMENTS": [1]}, r"MYSQLPOOL_ARGUMENTS is \[1\]; it must be a dict"),
            ({"MYSQLPOOL_ARGUMENTS": {"recycl": 1}}, "MYSQLPOOL_ARGUMENTS has the key 'recycl'"),
        ],
    )
    def test_so_do_those_of_the_old_settings(self, settings, message):
        with override_settings(**settings), pytest.raises(ImproperlyConfigured, match=message):
            read()

    def test_they_come_before_the_first_connection(self, make_alias):
        with pytest.raises(ImproperlyConfigured, match="pool_siz"):
            make_alias(pool={"pool_siz": 5})


class TestWhenSqlalchemyIsImported:
    """It takes longer to import than all of Django."""

    @staticmethod
    def modules_after(tmp_path, options: str, *statements: str) -> str:
        entry = f"{{'ENGINE': 'django_mysqlpool.backends.mysqlpool', 'NAME': 'shop', 'OPTIONS': {{'pool': {options}}}}}"
        (tmp_path / "a_site.py").write_text(
            f"DATABASES = {{'default': {entry}}}\nSECRET_KEY = 'x'\nINSTALLED_APPS = ['django_mysqlpool']\n"
        )
        program = "\n".join(("import sys, django", "django.setup()", *statements, "print('sqlalchemy' in sys.modules)"))
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "a_site"}
        environment["PYTHONPATH"] = os.pathsep.join((str(tmp_path), str(ROOT)))
        command = [sys.executable, "-W", "ignore", "-c", program]
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return told.splitlines()[-1]

    @pytest.mark.parametrize(
        "options", ["{}", "{'pool_size': 3, 'max_overflow': 0, 'release': 'transaction', 'reset_on_return': None}", "True"]
    )
    def test_not_by_a_command_that_never_connects(self, options, tmp_path):
        statements = (
            "from django.core.management import call_command",
            "from django.db import connections",
            "connections['default']",
            "call_command('check')",
            "import django_mysqlpool",
            "django_mysqlpool.pool_status()",
            "django_mysqlpool.close_pool()",
        )
        assert self.modules_after(tmp_path, options, *statements) == "False"

    @pytest.mark.parametrize(
        "statement",
        [
            "from django_mysqlpool.middleware import ConnectionReleaseMiddleware as M; M(lambda request: None)",
            "from django_mysqlpool.middleware import ConnectionReleaseWSGI as M; M(lambda *_: None)",
            "from django_mysqlpool.middleware import ConnectionReleaseASGI as M; M(lambda *_: None)",
        ],
    )
    def test_before_the_first_request(self, statement, tmp_path):
        assert self.modules_after(tmp_path, "{}", statement) == "True"

    def test_for_what_only_it_can_check(self, tmp_path):
        options = "{'pool_class': 'NullPool'}"
        assert (
            self.modules_after(tmp_path, options, "from django.db import connections", "connections['default']") == "True"
        )
