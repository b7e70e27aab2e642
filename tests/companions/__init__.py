"""Other people's software beside the pool, each as its users run it: it works, and it leaves nothing out.

Their packages are in the dependency group ``companions``. A module of which one is missing is skipped, with the reason;
where ``MYSQLPOOL_TEST_COMPANIONS`` is ``required``, as in CI, that is an error.
"""

from __future__ import annotations

import os
from importlib import import_module

import pytest

#: The most connections that a site's worker may have; the server refuses it a further one.
CAP = 2
MUST_ALL_BE_HERE = os.environ.get("MYSQLPOOL_TEST_COMPANIONS") == "required"


def needs(*modules: str) -> None:
    """Skip the calling module where one of these is not installed."""
    for module in modules:
        if MUST_ALL_BE_HERE:
            import_module(module)
        else:
            pytest.importorskip(module, reason=f"{module} is not installed (pip install --group companions)")


def do_without(reason: str) -> None:
    """Skip the calling module, for that reason."""
    if MUST_ALL_BE_HERE:
        raise RuntimeError(f"all companions must be here: {reason}")
    pytest.skip(reason, allow_module_level=True)
