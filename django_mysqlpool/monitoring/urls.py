"""The addresses of the status page: ``path("mysqlpool/", include("django_mysqlpool.monitoring.urls"))``.

The import of this module begins to record the page's history.
"""

from django.urls import path

from . import access, history, views

access.check_settings()
history.record()

app_name = "mysqlpool"
urlpatterns = [
    path("", views.status, name="status"),
    path("healthz", views.healthz, name="healthz"),
    path("readyz", views.readyz, name="readyz"),
    path("<str:name>", views.asset, name="asset"),
]
