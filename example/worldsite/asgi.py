"""The application that an ASGI server (uvicorn, hypercorn) serves."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

from django_mysqlpool.middleware import ConnectionReleaseASGI

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "worldsite.settings")

application = get_asgi_application()
if "mysqlpool" in settings.DATABASES["default"]["ENGINE"]:
    # pooled: lends each request a warm thread, where asgiref would start and end one for each.
    application = ConnectionReleaseASGI(application)
