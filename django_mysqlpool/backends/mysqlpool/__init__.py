"""The engine ``django_mysqlpool.backends.mysqlpool``."""
