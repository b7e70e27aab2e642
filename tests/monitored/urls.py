"""The tests' views, and the status page beside them."""

from django.urls import include, path

from tests import urls


def everybody(request):
    return True


def nobody(request):
    return False


urlpatterns = [path("mysqlpool/", include("django_mysqlpool.monitoring.urls")), *urls.urlpatterns]
