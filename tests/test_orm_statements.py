"""What the ORM writes is harmless on the server at hand: each function, each lookup of each field, each kind of statement.

The statements are caught on their way to the cursor, and are not executed: a function may be the other server's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest
from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import NotSupportedError, connection, models, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Sum, Value, When, Window, aggregates, functions
from django.db.models.fields.json import KT
from django.db.models.functions import MD5, SHA1, Coalesce, Concat, ExtractYear, Lower, Now, Rank, TruncMonth

from django_mysqlpool import hold_connection
from django_mysqlpool.mysqlpool.statements import SessionEffect, StatementEffects, analyser_for
from tests.helpers import fetch
from tests.shop.models import Account

pytestmark = [pytest.mark.django, pytest.mark.server]

# (BitAggregate is new in Django 6.1.)
ABSTRACT = {models.Func, aggregates.Aggregate, getattr(aggregates, "BitAggregate", None)}


class Everything(models.Model):
    """A field of each kind that has a column type of its own."""

    big = models.BigIntegerField()
    binary = models.BinaryField()
    boolean = models.BooleanField()
    char = models.CharField(max_length=9)
    date = models.DateField()
    moment = models.DateTimeField()
    decimal = models.DecimalField(max_digits=9, decimal_places=2)
    duration = models.DurationField()
    floating = models.FloatField()
    address = models.GenericIPAddressField()
    integer = models.IntegerField()
    json = models.JSONField()
    text = models.TextField()
    time = models.TimeField()
    uuid = models.UUIDField()
    parent = models.ForeignKey("self", models.CASCADE, null=True)

    class Meta:
        app_label = "shop"
        managed = False


VALUES = {
    "big": 1,
    "binary": b"\\'\0x",
    "boolean": True,
    "char": "it's",
    "date": "2024-01-01",
    "moment": "2024-01-01T00:00Z",
    "decimal": 1,
    "duration": timedelta(days=1),
    "floating": 1.5,
    "address": "::1",
    "integer": 1,
    "json": {"a": ["'"]},
    "text": "%s",
    "time": "01:00",
    "uuid": "12345678123456781234567812345678",
}


class Caught(Exception):
    pass


@pytest.fixture
def caught():
    """Calls something that uses the ORM; returns the statements, which go no further."""
    with hold_connection():
        fetch(connection, "SELECT 1")  # it is set up
        yield catching(analyser_for(connection.pool.server.version, "utf8mb4"))


def catching(analyse: Callable[[object], StatementEffects]) -> Callable[..., dict[str, SessionEffect]]:
    def catch(use: Callable[[], object]) -> dict[str, SessionEffect]:
        found: dict[str, SessionEffect] = {}

        def note(execute, sql, params, many, context):
            if sql.split()[0] in {"SAVEPOINT", "RELEASE", "ROLLBACK"}:
                return execute(sql, params, many, context)
            found[sql] = analyse(sql).on_session
            raise Caught

        with pytest.raises(Caught), connection.execute_wrapper(note), transaction.atomic():
            use()
        return found

    return catch


def assert_clean(found: dict[str, SessionEffect]) -> None:
    assert found
    assert not {sql for sql, effect in found.items() if effect}


#: On MySQL these two are loadable functions from 9.6 on, or stored ones.
HASHES = {MD5, SHA1}
FUNCTIONS = {
    cls
    for module in (functions, aggregates)
    for cls in vars(module).values()
    if inspect.isclass(cls) and issubclass(cls, models.Func) and cls not in ABSTRACT
}
ARGUMENTS: list[tuple[object, ...]] = [
    *((), ("char",), ("integer",), ("moment",), ("floating",), ("char", Value("x")), ("floating", 2), ("char", 2)),
    *(("char", Value("x"), Value("y")), ("moment", "date"), ("char", 2, Value(" ")), ("json",), ("duration",)),
    *(
        ("char", models.BinaryField()),
        ("integer", models.DecimalField(max_digits=9, decimal_places=2)),
        ("char", "utf8mb4_bin"),
    ),
    *((Q(char="x"),), ("integer", 1, 2), ("moment", "day"), ("moment", "iso_week_day")),
]


def annotated(cls: type, arguments: tuple[object, ...]) -> list[models.QuerySet]:
    """Queries of this function, as an aggregate and as a window as far as it is one, if it takes these arguments."""
    found = []
    is_window = getattr(cls, "window_compatible", False)
    with suppress(*NOT_SO):
        if is_window:
            found.append(Window(cls(*arguments), partition_by="char", order_by="date"))
        if not is_window or getattr(cls, "contains_aggregate", False):
            found.append(cls(*arguments))
    queries = []
    for expression in found:
        with suppress(*NOT_SO):
            query = Everything.objects.annotate(x=expression).values("x")
            query.query.sql_with_params()
            queries.append(query)
    return queries


#: What Django raises where a function does not take such arguments.
NOT_SO = (FieldError, FieldDoesNotExist, NotSupportedError, TypeError, ValueError, AttributeError)


@pytest.mark.parametrize("cls", sorted(FUNCTIONS, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_functions(caught, cls):
    queries = [query for arguments in ARGUMENTS for query in annotated(cls, arguments)]
    if not queries:
        pytest.skip("not on this server, or not without what has arguments of its own")
    analysed = {sql: effect for query in queries for sql, effect in caught(partial(list, query)).items()}
    if cls in HASHES and not connection.mysql_is_mariadb and connection.mysql_version >= (9, 6):
        assert set(analysed.values()) == {SessionEffect.DIRTY}
    else:
        assert_clean(analysed)


FIELDS = [field for field in Everything._meta.get_fields() if field.concrete and field.name not in {"id", "parent"}]
LOOKUPS = [(field.name, name) for field in FIELDS for name in field.get_lookups()]


@pytest.mark.parametrize(("field", "lookup"), LOOKUPS)
def test_lookups(caught, field, lookup):
    value: object = VALUES[field]
    if lookup == "isnull":
        value = True
    elif lookup in {"in", "range", "has_keys", "has_any_keys"}:
        value = [value, value]
    elif lookup in {"regex", "iregex", "has_key"}:
        value = "a"
    elif issubclass(Everything._meta.get_field(field).get_lookups()[lookup], models.Transform):
        value = 1 if lookup not in {"date", "time"} else VALUES[lookup]
    try:
        found = caught(lambda: list(Everything.objects.filter(**{f"{field}__{lookup}": value})))
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert_clean(found)


def saved(**values: object) -> Everything:
    return Everything(**VALUES, **values)


STATEMENTS: dict[str, Callable[[], object]] = {
    "insert": lambda: saved().save(),
    "insert with a key": lambda: saved(pk=1).save(force_insert=True),
    "bulk_create": lambda: Everything.objects.bulk_create([saved(), saved()]),
    "bulk_create, ignoring": lambda: Everything.objects.bulk_create([saved()], ignore_conflicts=True),
    "bulk_create, updating": lambda: Everything.objects.bulk_create(
        [saved(pk=1)], update_conflicts=True, update_fields=["char", "binary"]
    ),
    "bulk_update": lambda: Everything.objects.bulk_update([saved(pk=1), saved(pk=2)], ["char", "binary", "json", "moment"]),
    "update": lambda: Everything.objects.filter(binary=b"x").update(**VALUES),
    "update by expression": lambda: Everything.objects.update(integer=F("big") % 3 + 1, char=Coalesce("text", Value("x"))),
    "update by case": lambda: Everything.objects.update(
        char=Case(When(date__year=2024, then=Value("a")), default=F("char"))
    ),
    "delete": lambda: Everything.objects.filter(char="x")._raw_delete("default"),
    "select_for_update": lambda: list(Everything.objects.select_for_update(skip_locked=True)),
    "exists": lambda: Everything.objects.filter(Exists(Everything.objects.filter(parent=OuterRef("pk")))).exists(),
    "union": lambda: list(Everything.objects.filter(pk=1).union(Everything.objects.filter(pk=2)).order_by("-pk")[:3]),
    "intersection": lambda: list(Everything.objects.values("pk").intersection(Everything.objects.values("pk"))),
    "difference": lambda: list(Everything.objects.values("pk").difference(Everything.objects.values("pk"))),
    "aggregate": lambda: Everything.objects.aggregate(n=Count("char", distinct=True, filter=Q(boolean=True))),
    "group by": lambda: list(Everything.objects.values("date__year").annotate(n=Count("*")).filter(n__gt=1)),
    "filter by window": lambda: list(Everything.objects.annotate(r=Window(Rank(), order_by="date")).filter(r__lte=2)),
    "json": lambda: list(Everything.objects.filter(json__a__0__contains="'").order_by(KT("json__a__0"))),
    "dates": lambda: list(Everything.objects.dates("date", "week")),
    "datetimes": lambda: list(Everything.objects.datetimes("moment", "hour")),
    "explain": lambda: Everything.objects.filter(char="x").explain(),
    "select_related": lambda: list(Everything.objects.select_related("parent__parent").distinct()),
    "iterator": lambda: list(Everything.objects.iterator(chunk_size=2)),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements(caught, name):
    assert_clean(caught(STATEMENTS[name]))


QUERIES = {
    "filter": Account.objects.filter(Q(name__icontains="a") | ~Q(balance__in=[1, 2])),
    "annotate": Account.objects.values("name").annotate(n=Count("pk"), s=Coalesce(Sum("balance"), 0)).order_by("-n"),
    "functions": Account.objects.annotate(c=Concat(Lower("name"), "name"), y=ExtractYear(Now()), m=TruncMonth(Now())),
    "window": Account.objects.annotate(rank=Window(Rank(), partition_by="name", order_by=F("balance").desc())),
    "subquery": Account.objects.filter(pk__in=Account.objects.filter(balance__gt=3).values("pk")),
    "union": Account.objects.filter(pk=1).union(Account.objects.filter(pk=2), all=True),
    "for update": Account.objects.select_for_update(skip_locked=True).filter(pk=1),
    "explain": Account.objects.filter(name__regex="^a"),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_queries(query):
    with transaction.atomic():  # select_for_update() wants one
        sql, _ = query.query.sql_with_params()
        analyse = analyser_for(connection.pool.server.version, "utf8mb4")
    assert analyse(sql).on_session is SessionEffect.CLEAN, sql


def test_geometry():
    """The functions that GeoDjango names for MySQL, where its libraries are installed or not."""
    pytest.importorskip("django.contrib.gis.gdal", exc_type=Exception)
    from django.core.exceptions import ImproperlyConfigured

    try:
        from django.contrib.gis.db.backends.mysql.operations import MySQLOperations
    except (ImproperlyConfigured, OSError) as error:
        pytest.skip(str(error))
    fetch(connection, "SELECT 1")
    analyse = analyser_for(connection.pool.server.version, "utf8mb4")
    operators = MySQLOperations(connection).gis_operators.values()
    names = {"ST_AsText", "ST_AsBinary", *(operator.func for operator in operators if operator.func)}
    for name in names:
        assert analyse(f"SELECT {name}(`a`, ST_GeomFromText(%s, 4326)) FROM t").on_session is SessionEffect.CLEAN
