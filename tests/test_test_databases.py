"""Django's test databases on a pooled alias: made, cloned, used by parallel workers, destroyed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.test_engine import status_of


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


def test_the_parallel_runner(pytestconfig):
    """``manage.py test --parallel 2`` forks workers from a process with connections; each uses a clone."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "test", "--parallel", "2", "--noinput", "tests.shop"],
        capture_output=True,
        text=True,
        cwd=pytestconfig.rootpath,
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    assert "Ran 4 tests" in run.stderr
    assert "in parallel" not in run.stderr.lower() or "2 processes" in run.stderr
