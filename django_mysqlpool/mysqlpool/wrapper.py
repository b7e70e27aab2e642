"""The name under which engines import the patch of Django's ``DatabaseWrapper``."""

from .backend.wrapper import PooledDatabaseMixin

__all__ = ["PooledDatabaseMixin"]
