"""The engine ``django_mysqlpool.backends.mysqlpool_gis``."""
