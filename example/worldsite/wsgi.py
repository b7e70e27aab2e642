"""The application that a WSGI server (gunicorn, uWSGI) serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "worldsite.settings")

application = get_wsgi_application()
