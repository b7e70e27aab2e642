"""The type checker sees the signature of what was decorated."""

from __future__ import annotations

import pytest

# (To read Django's types from nothing takes a busy machine minutes.)
pytestmark = [pytest.mark.python, pytest.mark.timeout(600)]


def test_the_cases(pytestconfig, tmp_path):
    """Strict, and with warnings about each ``type: ignore`` that nothing needs."""
    mypy = pytest.importorskip("mypy.api", reason="mypy is of the lint group")
    cases = pytestconfig.rootpath / "tests" / "typing_cases.py"
    settings = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", "--follow-imports=silent"]
    said, complaint, code = mypy.run([*settings, str(cases)])
    assert (said.splitlines()[-1:], complaint, code) == (["Success: no issues found in 1 source file"], "", 0), said
