"""The addresses of the cities app."""

from django.urls import path

from cities import views

app_name = "cities"
urlpatterns = [
    path("", views.search, name="search"),
    path("cities/<int:pk>/", views.city, name="city"),
    path("cities/<int:pk>/notes/", views.add_note, name="add_note"),
    path("api/cities/", views.api, name="api"),
]
