"""The tests' site for a WSGI server; its database is in the environment."""

import os

from django.core.wsgi import get_wsgi_application

from django_mysqlpool.middleware import ConnectionReleaseWSGI

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
application = get_wsgi_application()
if "MYSQLPOOL_TEST_QUERY_FIRST" in os.environ:
    # As a site that asks the database while it is imported: its workers, forked then, inherit the connection.
    from tests.urls import query

    query()
wrapped = ConnectionReleaseWSGI(application)
