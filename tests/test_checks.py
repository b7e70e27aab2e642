"""The system checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from asgiref.local import Local
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from django_mysqlpool.middleware import ConnectionReleaseMiddleware

pytestmark = pytest.mark.django

MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
OTHER = "django.middleware.common.CommonMiddleware"


def ids(**how: bool) -> list[str]:
    return [m.id for m in run_checks(**how) if m.id.startswith("django_mysqlpool")]


def test_a_site_as_documented_has_nothing_to_hear():
    assert ids() == []


def test_use_threadlocal_is_explained():
    with override_settings(MYSQLPOOL_ARGUMENTS={"use_threadlocal": True}):
        connections["default"].close()
        del connections["default"]
        (message,) = (m for m in run_checks() if m.id == "django_mysqlpool.W001")
        assert "default" in message.msg
        assert "no longer exists" in message.hint
    del connections["default"]


def test_the_middleware_is_missing():
    with override_settings(MIDDLEWARE=[OTHER]):
        assert ids() == ["django_mysqlpool.W002"]


def test_the_middleware_is_not_the_first():
    with override_settings(MIDDLEWARE=[OTHER, MIDDLEWARE]):
        assert ids() == ["django_mysqlpool.W003"]


def test_options_of_another_pool_are_found(make_alias):
    alias = make_alias(POOL_OPTIONS={"POOL_SIZE": 3}).alias
    (message,) = (m for m in run_checks() if m.id == "django_mysqlpool.W005")
    assert f"'{alias}'" in message.msg
    assert "OPTIONS['pool']" in message.hint


class TestTimeouts:
    """Only ``manage.py check --deploy`` asks."""

    @pytest.mark.parametrize(
        ("options", "missing"),
        [
            ({}, "no read_timeout and no write_timeout"),
            ({"read_timeout": 60}, "no write_timeout"),
            ({"read_timeout": 0, "write_timeout": 30}, "no read_timeout"),
        ],
    )
    def test_what_is_missing_is_named(self, make_alias, options, missing):
        alias = make_alias(options=options).alias
        (message,) = (m for m in run_checks(include_deployment_checks=True) if f"'{alias}'" in m.msg)
        assert message.id == "django_mysqlpool.W004"
        assert message.msg.endswith(f" have {missing}.")
        assert "for ever" in message.hint

    def test_with_both_there_is_nothing_to_say(self, make_alias):
        alias = make_alias(options={"read_timeout": 60, "write_timeout": 30}).alias
        assert not [m for m in run_checks(include_deployment_checks=True) if f"'{alias}'" in m.msg]

    def test_an_alias_that_is_not_pooled_is_djangos_business(self, make_alias):
        plain, stock = make_alias(pool=False).alias, make_alias(ENGINE="django.db.backends.mysql").alias
        messages = run_checks(include_deployment_checks=True)
        assert not [m for m in messages if f"'{plain}'" in m.msg or f"'{stock}'" in m.msg]

    def test_without_deploy_nothing_is_said(self, make_alias):
        make_alias()
        assert ids() == []
        assert "django_mysqlpool.W004" in ids(include_deployment_checks=True)


def test_wrong_options_of_any_alias_end_the_start():
    connections.settings["wrong"] = {**connections.settings["default"], "OPTIONS": {"pool": {"pool_siz": 1}}}
    try:
        with pytest.raises(ImproperlyConfigured, match="database alias 'wrong'"):
            run_checks()
    finally:
        del connections.settings["wrong"]


class TestWhatWasMeantToBePooled:
    """Django's engine where ours was meant, and options that stand in a wrong place."""

    @pytest.fixture
    def only(self, monkeypatch):
        """Has the given entry be the only alias."""

        def set_up(**entry):
            databases = connections.configure_settings({"default": {"NAME": "shop", **entry}})
            monkeypatch.setattr(connections, "_settings", databases, raising=False)
            monkeypatch.setattr(connections, "settings", databases)
            monkeypatch.setattr(connections, "_connections", Local())

        with override_settings():
            del settings.MYSQLPOOL_ARGUMENTS  # of the tests' site
            yield set_up

    @staticmethod
    def messages():
        # (From Django 6.1 on, the checks of models ask the server, which is not there.)
        return [m for m in run_checks(tags=["compatibility"]) if m.id.startswith("django_mysqlpool")]

    @pytest.mark.parametrize("engine", ["django.db.backends.mysql", "django.contrib.gis.db.backends.mysql"])
    def test_a_pools_options_for_djangos_engine(self, engine, only):
        only(ENGINE=engine, OPTIONS={"pool": {"pool_size": 5}})
        (message,) = self.messages()
        assert (message.id, "'default'" in message.msg) == ("django_mysqlpool.E002", True)
        assert "ENGINE must be 'django_mysqlpool.backends.mysqlpool" in message.hint

    @pytest.mark.parametrize(
        ("changed", "sign"),
        [
            ({"MIDDLEWARE": [OTHER, MIDDLEWARE]}, MIDDLEWARE),
            ({"MYSQLPOOL_BACKEND": "QueuePool", "MIDDLEWARE": []}, "MYSQLPOOL_BACKEND"),
            ({"MYSQLPOOL_ARGUMENTS": {}, "MIDDLEWARE": [MIDDLEWARE]}, f"MYSQLPOOL_ARGUMENTS and {MIDDLEWARE}"),
        ],
    )
    def test_nothing_is_pooled(self, changed, sign, only):
        only(ENGINE="django.db.backends.mysql")
        with override_settings(**changed):
            (message,) = self.messages()
        assert message.id == "django_mysqlpool.W007"
        assert message.msg == f"No database alias is pooled, though the settings have {sign}."

    def test_the_middleware_tells_it_where_no_check_can(self, only, caplog):
        only(ENGINE="django.db.backends.mysql")
        with override_settings(MIDDLEWARE=[MIDDLEWARE]):
            ConnectionReleaseMiddleware(lambda request: None)
        assert "No database alias is pooled" in caplog.text

    @pytest.mark.parametrize(
        ("engine", "options", "middleware"),
        [
            ("django.db.backends.mysql", {}, []),  # another project's settings
            ("django.db.backends.sqlite3", {}, [MIDDLEWARE]),
            ("django_mysqlpool.backends.mysqlpool", {"pool": {"pool_size": 5}}, [MIDDLEWARE]),
        ],
    )
    def test_what_is_right(self, engine, options, middleware, only):
        only(ENGINE=engine, OPTIONS=options)
        with override_settings(MIDDLEWARE=middleware):
            assert self.messages() == []

    def test_options_beside_pool(self, only):
        only(ENGINE="django_mysqlpool.backends.mysqlpool", OPTIONS={"pool_size": 5, "recycle": 60, "read_timeout": 5})
        first, second = self.messages()
        assert (first.id, second.id) == ("django_mysqlpool.E003",) * 2
        assert ("'pool_size'" in first.msg, "'recycle'" in second.msg) == (True, True)

    @pytest.mark.parametrize("key", ["POOL", "pool", "options", "Options"])
    def test_keys_of_the_alias_that_do_nothing(self, key, only):
        only(ENGINE="django_mysqlpool.backends.mysqlpool", **{key: {"pool_size": 5}})
        (message,) = self.messages()
        assert (message.id, repr(key) in message.msg) == ("django_mysqlpool.W008", True)

    def test_a_misspelt_setting(self):
        with override_settings(MYSQLPOOL_ARGUMENT={}, MYSQLPOOL_ARGUMENTS={}):
            (message,) = self.messages()
        assert message.id == "django_mysqlpool.W009"
        assert "Did you mean 'MYSQLPOOL_ARGUMENTS'?" in message.hint

    def test_a_setting_that_needs_the_application(self, tmp_path):
        with override_settings(MYSQLPOOL_STATUS_FOLDER=str(tmp_path)):
            with override_settings(INSTALLED_APPS=[app for app in settings.INSTALLED_APPS if app != "django_mysqlpool"]):
                (message,) = self.messages()
            assert message.id == "django_mysqlpool.W009"
            assert "INSTALLED_APPS lacks 'django_mysqlpool'" in message.hint
            with override_settings(INSTALLED_APPS=[*{*settings.INSTALLED_APPS, "django_mysqlpool"}]):
                assert self.messages() == []

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("no.such.function", "ModuleNotFoundError: No module named 'no'"),
            ("tests.helpers.numbers", "TypeError: it is not a function but"),
            (7, "it is no string"),
            ("tests.helpers.discard", None),
            (False, None),
        ],
    )
    def test_the_overload_handler(self, value, why):
        with override_settings(MYSQLPOOL_OVERLOAD_HANDLER=value, MYSQLPOOL_ARGUMENTS={}):
            messages = self.messages()
        assert [m.id for m in messages] == ([] if why is None else ["django_mysqlpool.E006"])
        assert all(why in m.msg and repr(value) in m.msg for m in messages)

    @pytest.mark.parametrize("key", ["POOL", "pool", "options"])
    def test_keys_that_do_nothing_beside_djangos_engine(self, key, only):
        only(ENGINE="django.db.backends.mysql", **{key: {"pool_size": 5}})
        with override_settings(MIDDLEWARE=[]):
            (message,) = self.messages()
        assert message.msg == f"No database alias is pooled, though the settings have DATABASES['default']['{key}']."

    @pytest.mark.parametrize("engine", ["django.db.backends.mysql", "django_mysqlpool.backends.mysqlpool"])
    def test_options_that_are_none(self, engine, only):
        only(ENGINE=engine, OPTIONS=None)
        if engine.startswith("django_mysqlpool"):
            with pytest.raises(ImproperlyConfigured, match="^OPTIONS is None"):
                self.messages()
        else:
            with override_settings(MIDDLEWARE=[]):
                assert self.messages() == []

    def test_a_project_that_serves_no_requests_needs_no_middleware(self, only):
        only(ENGINE="django_mysqlpool.backends.mysqlpool")
        with override_settings(MIDDLEWARE=[], ROOT_URLCONF=None):
            assert self.messages() == []
        with override_settings(MIDDLEWARE=[]):
            assert [m.id for m in self.messages()] == ["django_mysqlpool.W002"]


@pytest.mark.parametrize(
    "line",
    ["INSTALLED_APPS = ['django_mysqlpool']", "from django_mysqlpool import auto_close_db"],
    ids=["the application", "any import"],
)
def test_where_no_alias_is_pooled_the_checks_are_registered_by(line, tmp_path):
    entry = "{'default': {'ENGINE': 'django.db.backends.mysql', 'NAME': 'shop', 'OPTIONS': {'pool': {}}}}"
    (tmp_path / "a_site.py").write_text(f"DATABASES = {entry}\nSECRET_KEY = 'x'\n{line}\n")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "a_site", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-m", "django", "check", "--tag", "compatibility"]
    told = subprocess.run(command, env=environment, check=False, capture_output=True, text=True).stderr
    assert "(django_mysqlpool.E002) The OPTIONS of the database alias 'default' have 'pool'" in told
