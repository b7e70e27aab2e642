"""Django's test databases on a pooled alias: made, cloned, destroyed."""

from __future__ import annotations

import pytest

from tests.helpers import status_of

pytestmark = [pytest.mark.django, pytest.mark.server, pytest.mark.mode]


def test_create_clone_and_destroy(make_alias, observer):
    wrapper = make_alias(TEST={"NAME": "test_of_the_pool"})
    name = wrapper.settings_dict["NAME"]
    wrapper.ensure_connection()
    wrapper.close()
    wrapper.creation.create_test_db(verbosity=0, autoclobber=True)
    wrapper.creation.clone_test_db("1", verbosity=0, autoclobber=True)
    wrapper.ensure_connection()
    assert wrapper.pool.name.endswith("/test_of_the_pool")
    databases = {row[0] for row in observer.query("SHOW DATABASES")}
    assert {"test_of_the_pool", "test_of_the_pool_1"} <= databases
    wrapper.creation.destroy_test_db(verbosity=0, suffix="1")
    wrapper.creation.destroy_test_db(name, verbosity=0)
    assert "test_of_the_pool" not in {row[0] for row in observer.query("SHOW DATABASES")}
    wrapper.ensure_connection()
    assert wrapper.pool.name.endswith(f"/{name}")
    assert status_of(wrapper)["out"] == 1
