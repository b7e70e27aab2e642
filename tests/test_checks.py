"""The system checks."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

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
