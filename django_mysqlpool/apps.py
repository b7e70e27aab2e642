"""The application of Django's, for ``INSTALLED_APPS``: it is optional, and has the system checks run in each project."""

from __future__ import annotations

from django.apps import AppConfig


class MysqlpoolConfig(AppConfig):
    """Registers the system checks, though no engine of this package has been loaded yet."""

    name = "django_mysqlpool"
    verbose_name = "Connection pool"

    def ready(self) -> None:
        """Import the checks, which registers them."""
        from django_mysqlpool import checks  # noqa: F401
