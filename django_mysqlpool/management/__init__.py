"""The commands of ``manage.py``, which Django finds if ``INSTALLED_APPS`` has ``django_mysqlpool``."""
