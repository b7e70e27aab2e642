"""The application of Django's, for ``INSTALLED_APPS``: it is optional, and has the system checks run in each project."""

from __future__ import annotations

from django.apps import AppConfig


class MysqlpoolConfig(AppConfig):
    """Has the package imported, which registers the system checks, though no engine of it may be in use."""

    name = "django_mysqlpool"
    verbose_name = "Connection pool"
