"""The system checks."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
OTHER = "django.middleware.common.CommonMiddleware"


def ids() -> list[str]:
    return [m.id for m in run_checks() if m.id.startswith("django_mysqlpool")]


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


def test_wrong_options_of_any_alias_end_the_start():
    connections.settings["wrong"] = {**connections.settings["default"], "OPTIONS": {"pool": {"pool_siz": 1}}}
    try:
        with pytest.raises(ImproperlyConfigured, match="database alias 'wrong'"):
            run_checks()
    finally:
        del connections.settings["wrong"]
