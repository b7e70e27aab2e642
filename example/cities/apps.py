"""The one app of the site."""

from django.apps import AppConfig


class CitiesConfig(AppConfig):
    """The world's cities."""

    name = "cities"
    default_auto_field = "django.db.models.BigAutoField"
