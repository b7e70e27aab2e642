"""The application of Django's, for ``INSTALLED_APPS``.

It is optional: it has the system checks run in each project, brings ``manage.py mysqlpool``, and has processes write their
status if ``MYSQLPOOL_STATUS_FOLDER`` is set.
"""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings


class MysqlpoolConfig(AppConfig):
    """Registers the system checks, though no engine of this package was loaded yet, and begins what settings ask for."""

    name = "django_mysqlpool"
    verbose_name = "Connection pool"

    def ready(self) -> None:
        """Import the checks, which registers them; have the status of this process written if a setting says where."""
        from django_mysqlpool import checks  # noqa: F401

        folder = getattr(settings, "MYSQLPOOL_STATUS_FOLDER", None)
        if folder is not None:
            from django_mysqlpool.monitoring.process_writer import write_process_files

            write_process_files(folder)
