"""The world: its countries, its cities, and what visitors wrote about them."""

from django.db import models
from django.urls import reverse


class Country(models.Model):
    """A country, by its ISO 3166 code."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    capital = models.CharField(max_length=100, blank=True)
    continent = models.CharField(max_length=2)
    population = models.PositiveBigIntegerField()

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "countries"

    def __str__(self):
        return self.name


class City(models.Model):
    """A city of more than 15,000 people, by its number at geonames.org."""

    id = models.PositiveIntegerField(primary_key=True)
    name = models.CharField(max_length=200, db_index=True)
    country = models.ForeignKey(Country, on_delete=models.CASCADE, related_name="cities")
    latitude = models.FloatField()
    longitude = models.FloatField()
    population = models.PositiveIntegerField(db_index=True)
    timezone = models.CharField(max_length=40)
    note_count = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-population"]
        verbose_name_plural = "cities"
        indexes = [models.Index(fields=["country", "-population"], name="city_country_population")]

    def __str__(self):
        return self.name

    def get_absolute_url(self):
        """The city's page."""
        return reverse("cities:city", args=[self.pk])


class Note(models.Model):
    """What a visitor left on a city's page."""

    city = models.ForeignKey(City, on_delete=models.CASCADE, related_name="notes")
    text = models.CharField(max_length=200)
    written_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self):
        return self.text
