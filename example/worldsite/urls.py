"""Every address of the site."""

from django.conf import settings
from django.urls import include, path

urlpatterns = [path("", include("cities.urls"))]

if settings.ENGINE == settings.POOLED_ENGINE:
    # pooled: the status page, and the probes healthz and readyz.
    urlpatterns += [path("mysqlpool/", include("django_mysqlpool.monitoring.urls"))]
