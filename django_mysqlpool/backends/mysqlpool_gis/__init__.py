"""``ENGINE = "django_mysqlpool.backends.mysqlpool_gis"``."""
