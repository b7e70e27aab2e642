"""Settings of the example site. What makes it pooled is marked "pooled:".

The environment says where the database is, and which engine is used, so that the same site can be
run on Django's own engine and on this package's, and the two be compared.
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "for-the-example-only-never-for-a-site-of-yours")
DEBUG = os.environ.get("DEBUG") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

POOLED_ENGINE = "django_mysqlpool.backends.mysqlpool"
ENGINE = os.environ.get("ENGINE", POOLED_ENGINE)

DATABASES = {
    "default": {
        "ENGINE": ENGINE,
        "NAME": os.environ.get("DATABASE_NAME", "world"),
        "HOST": os.environ.get("DATABASE_HOST", "127.0.0.1"),
        "PORT": os.environ.get("DATABASE_PORT", "3306"),
        "USER": os.environ.get("DATABASE_USER", "root"),
        "PASSWORD": os.environ.get("DATABASE_PASSWORD", ""),
        "OPTIONS": {},
    }
}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# pooled: each process takes at most pool_size + max_overflow connections from the server, so two
# processes at most 24.
POOL = {"pool_size": 10, "max_overflow": 2}

if ENGINE == POOLED_ENGINE:
    DATABASES["default"]["OPTIONS"]["pool"] = POOL
    # pooled: gives the request's connection back when the response is ready. First of all, so that
    # the middleware below it may use the database too.
    MIDDLEWARE.insert(0, "django_mysqlpool.middleware.ConnectionReleaseMiddleware")

# pooled: who may see the status page beside members of staff, whom this site does not have. The
# demo lets everybody on this machine in, without a password.
MYSQLPOOL_STATUS_TOKEN = os.environ.get("STATUS_TOKEN")
if os.environ.get("DEMO") == "1":
    MYSQLPOOL_STATUS_ACCESS = "worldsite.about.is_on_this_machine"

INSTALLED_APPS = ["cities"]
ROOT_URLCONF = "worldsite.urls"
WSGI_APPLICATION = "worldsite.wsgi.application"
ASGI_APPLICATION = "worldsite.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "worldsite.about.engine",
            ]
        },
    }
]

TIME_ZONE = "UTC"
USE_TZ = True
