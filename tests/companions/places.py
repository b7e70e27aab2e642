"""GeoDjango's models of the tests: of no installed application, so that only the tests of GeoDjango load GDAL."""

from __future__ import annotations

from django.contrib.gis.db import models


class Place(models.Model):
    name = models.CharField(max_length=100)
    location = models.PointField()

    class Meta:
        app_label = "companions"


class Region(models.Model):
    name = models.CharField(max_length=100)
    area = models.PolygonField(srid=3857)  # on a plane

    class Meta:
        app_label = "companions"
