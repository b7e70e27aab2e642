"""GeoDjango on ``django_mysqlpool.backends.mysqlpool_gis``: spatial columns, queries and aggregates."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction

from tests.companions import do_without
from tests.helpers import status_of

pytestmark = pytest.mark.companion

try:
    from django.contrib.gis.db.models import Collect
    from django.contrib.gis.db.models.functions import Area, AsGeoJSON, AsWKT, Centroid, Distance, Intersection
    from django.contrib.gis.geos import Point, Polygon

    from tests.companions.places import Place, Region
except ImproperlyConfigured:  # what GeoDjango says where the libraries are missing
    do_without("GDAL or GEOS is missing (on Debian: apt-get install gdal-bin)")


def box(left: float, bottom: float, right: float, top: float) -> Polygon:
    """In the plane of the regions."""
    polygon = Polygon.from_bbox((left, bottom, right, top))
    polygon.srid = 3857
    return polygon


def point(x: float, y: float) -> Point:
    return Point(x, y, srid=3857)


BERLIN, PARIS, LISBON = Point(13.4, 52.5, srid=4326), Point(2.35, 48.86, srid=4326), Point(-9.14, 38.72, srid=4326)


@pytest.fixture
def spatial(make_alias):
    """An alias with three places and two regions, whose pool has two connections."""
    wrapper = make_alias(
        ENGINE="django_mysqlpool.backends.mysqlpool_gis", pool={"pool_size": 2, "max_overflow": 0}, at_most=2
    )
    with wrapper.schema_editor() as editor:
        editor.create_model(Place)
        editor.create_model(Region)
    for name, location in {"Berlin": BERLIN, "Paris": PARIS, "Lisbon": LISBON}.items():
        Place.objects.using(wrapper.alias).create(name=name, location=location)
    for name, left in {"west": 0, "east": 5}.items():
        Region.objects.using(wrapper.alias).create(name=name, area=box(left, 0, left + 10, 10))
    wrapper.close()
    yield wrapper
    with wrapper.schema_editor() as editor:
        editor.delete_model(Region)
        editor.delete_model(Place)


def names(queryset) -> set[str]:
    return set(queryset.values_list("name", flat=True))


def test_spatial_queries(spatial):
    places, regions = Place.objects.using(spatial.alias), Region.objects.using(spatial.alias)
    central_europe = Polygon.from_bbox((0, 45, 20, 55))
    central_europe.srid = 4326
    assert names(places.filter(location__within=central_europe)) == {"Berlin", "Paris"}
    assert names(places.filter(location__disjoint=central_europe)) == {"Lisbon"}
    paris = places.get(location=PARIS)
    assert (paris.location.x, paris.location.y, paris.location.srid) == (2.35, 48.86, 4326)
    assert names(regions.filter(area__contains=point(7, 5))) == {"west", "east"}
    assert names(regions.filter(area__intersects=box(12, 1, 13, 2))) == {"east"}
    shared = regions.annotate(shared=Intersection("area", box(0, 0, 7, 10))).get(name="east").shared
    assert shared.area == 20
    west = regions.annotate(area_of=Area("area"), centre=Centroid("area")).get(name="west")
    assert (west.area_of.sq_m, west.centre.coords) == (100, (5, 5))


def test_spatial_queries_leave_clean_sessions(spatial):
    """The pool knows the functions of GeoDjango as harmless, and neither resets nor pins a session for them."""
    places, regions = Place.objects.using(spatial.alias), Region.objects.using(spatial.alias)
    places.count()
    session, pins = one_session(spatial), dict(spatial.pool.statistics.pins)
    lookups = ["bbcontains", "bboverlaps", "contained", "contains", "crosses", "disjoint", "equals", "intersects"]
    lookups += ["overlaps", "touches", "within", *(["covers", "coveredby"] if not spatial.mysql_is_mariadb else [])]
    for lookup in lookups:
        regions.filter(**{f"area__{lookup}": box(0, 0, 20, 60)}).exists()
    if spatial.mysql_is_mariadb:
        regions.filter(area__relate=(box(0, 0, 20, 60), "T*T***FF*")).exists()
    list(regions.annotate(a=AsGeoJSON("area"), b=AsWKT("area"), c=Centroid("area"), d=Distance("area", point(1, 1))))
    if spatial.features.supports_collect_aggr:
        places.aggregate(Collect("location"))
    Place(name="Oslo", location=Point(10.75, 59.9, srid=4326)).save(using=spatial.alias)
    assert not session.is_dirty, session.history.dirtied_by
    assert spatial.pool.statistics.pins == pins


def one_session(wrapper):
    """The pool's only connection so far."""
    (session,) = wrapper.pool.sessions
    return session


def test_threads_share_two_connections(spatial, observer):
    here = threading.Barrier(6)

    def work(number):
        here.wait()
        try:
            for step in range(10):
                with transaction.atomic(using=spatial.alias):
                    point = Point(number, step, srid=4326)
                    place = Place.objects.using(spatial.alias).create(name=f"{number}/{step}", location=point)
                    assert Place.objects.using(spatial.alias).get(location=point) == place
        finally:
            connections[spatial.alias].close()

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(work, range(6)))
    assert Place.objects.using(spatial.alias).count() == 63
    spatial.close()
    assert status_of(spatial)["out"] == 0
    assert len(observer.connections_of(spatial.settings_dict["USER"])) <= 2
