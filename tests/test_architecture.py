"""What docs/architecture.md says of a checkout is what runs."""

from __future__ import annotations

import sys

import django
import pytest

from devtools.checkout_path import BEGIN, END, PAGE, described, record
from tests import DRIVER
from tests.helpers import RELEASE, backend_pid

pytestmark = pytest.mark.slow


@pytest.mark.skipif(DRIVER != "mysqlclient" or RELEASE != "request", reason="about the default driver and mode")
def test_the_functions_of_a_checkout_are_those_on_the_page(make_alias):
    wrapper = make_alias(pool={"pool_size": 1})
    if not wrapper.mysql_is_mariadb or sys.version_info[:2] != (3, 11) or django.VERSION[:2] != (5, 2):
        pytest.skip("others run through a few other functions")
    backend_pid(wrapper)  # so that nothing is done for the first time
    page = PAGE.read_text()
    on_page = page[page.index(BEGIN) : page.index(END) + len(END)]
    assert on_page == described(*record(make_alias(pool={"pool_size": 2})))
