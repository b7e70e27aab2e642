"""The tests' site for an ASGI server; its database is in the environment."""

import os

from django.core.asgi import get_asgi_application

from django_mysqlpool.middleware import ConnectionReleaseASGI

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
application = get_asgi_application()
wrapped = ConnectionReleaseASGI(application, threads=8)
