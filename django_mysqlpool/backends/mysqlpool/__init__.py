"""``ENGINE = "django_mysqlpool.backends.mysqlpool"``."""
