"""The servers that tests and demo start: what one run starts, another leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from mirakuru.base import ENV_UUID

pytestmark = pytest.mark.unit


def test_a_run_that_ends_kills_nothing_of_anothers(pytestconfig):
    """However alike the names that mirakuru has given both."""
    run = subprocess.Popen(
        [sys.executable, "-c", "import devtools.server; print('here', flush=True); input()"],
        cwd=pytestconfig.rootpath,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "here\n"
    others = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, ENV_UUID: f"1{run.pid}:a-random-name"},
    )
    run.communicate("end\n")
    others.communicate("end\n")
    assert (run.returncode, others.returncode) == (0, 0)
