"""Differences from the stock engine that are right, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BOTH = ("request", "transaction")


@dataclass(frozen=True)
class Right:
    """Why some tests end otherwise on the pooled engine, in some release modes; ``tests`` has a line for each class."""

    reason: str
    modes: tuple[str, ...]
    tests: str

    def names(self) -> Iterator[str]:
        """The ids of the tests."""
        for line in self.tests.strip().splitlines():
            group, _, names = line.strip().partition(": ")
            yield from (f"{group}.{name}" for name in names.split())


RIGHT = (
    Right(
        "The test's settings have none of this package's middleware. Its system check says so (django_mysqlpool.W002), "
        "where the test wants Django's checks to find nothing.",
        BOTH,
        """
        admin_checks.tests.SystemChecksTestCase: test_checks_are_performed test_custom_adminsite
        admin_scripts.tests.DjangoAdminAlternateSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.DjangoAdminDefaultSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.DjangoAdminFullPathDefaultSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.DjangoAdminMultipleSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.DjangoAdminSettingsDirectory: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.ManageAlternateSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.ManageCheck: test_app_with_import test_complex_app test_output_format test_warning_does_not_halt
        admin_scripts.tests.ManageDefaultSettings: test_builtin_command
        admin_scripts.tests.ManageDefaultSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.ManageFullPathDefaultSettings: test_builtin_command
        admin_scripts.tests.ManageFullPathDefaultSettings: test_builtin_with_environment test_builtin_with_settings
        admin_scripts.tests.ManageMultipleSettings: test_builtin_with_environment test_builtin_with_settings
        logging_tests.tests.SettingsConfigTest: test_circular_dependency
        logging_tests.tests.SettingsCustomLoggingTest: test_custom_logging
        urlpatterns_reverse.tests.ReverseLazySettingsTest: test_lazy_in_settings
        """,
    ),
    Right(
        "The test keeps a connection over requests (CONN_MAX_AGE, which a pooled alias refuses) and pretends that it is "
        "dead. The pool looks for itself, and lends the same one again.",
        BOTH,
        """
        backends.base.test_base.ConnectionHealthChecksTests: test_health_checks_enabled
        backends.base.test_base.ConnectionHealthChecksTests: test_set_autocommit_health_checks_enabled
        """,
    ),
    Right(
        "The test replaces BaseDatabaseWrapper.ensure_connection() by a function that calls the wrapper's, and that one "
        "comes back to the replacement, as it does on any engine that extends the method.",
        BOTH,
        "test_utils.tests.AssertNumQueriesUponConnectionTests: test_ignores_connection_configuration_queries",
    ),
    Right(
        "The test counts the connections that three threads have after a statement each. Between statements, none has any.",
        ("transaction",),
        "backends.tests.ThreadTests: test_default_connection_thread_local",
    ),
)


def expected(engine: str) -> dict[str, str]:
    """The reasons, by test, for an engine of ``run.ENGINES``."""
    return {test: right.reason for right in RIGHT if engine in right.modes for test in right.names()}
