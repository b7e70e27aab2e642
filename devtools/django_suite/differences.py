"""Differences from the stock engine that are right, by the test that shows them, each with its reason."""

from __future__ import annotations

_HEALTH = (
    "The test keeps a connection over requests (CONN_MAX_AGE, which a pooled alias refuses) and pretends that it is dead; "
    "the pool looks for itself, and lends the same one again."
)

#: In both release modes.
ALWAYS = {
    "backends.base.test_base.ConnectionHealthChecksTests.test_health_checks_enabled": _HEALTH,
    "backends.base.test_base.ConnectionHealthChecksTests.test_set_autocommit_health_checks_enabled": _HEALTH,
}
#: Where ``release`` is ``"transaction"``.
IN_TRANSACTION_MODE = {
    "backends.tests.ThreadTests.test_default_connection_thread_local": (
        "The test counts the connections that three threads have after a statement each: they have none between statements."
    ),
}


def expected(engine: str) -> dict[str, str]:
    """The reasons, by test, for an engine of ``run.ENGINES``."""
    return {**ALWAYS, **(IN_TRANSACTION_MODE if engine == "transaction" else {})}
