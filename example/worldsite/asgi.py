"""The application that an ASGI server (uvicorn, hypercorn) serves."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "worldsite.settings")

application = get_asgi_application()
