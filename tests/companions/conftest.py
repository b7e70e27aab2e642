"""Sites that a module's tests share: to start one takes longer than to test it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from devtools.server import Server
from tests.companions import CAP
from tests.corpus import recording
from tests.helpers import Observer
from tests.sites import Site, serving

#: What counts as dirty of all that the companions' tests send, by a pattern, and why it is.
DIRTY = {
    r"\s*SELECT VERSION\(\),\s+@@sql_mode": "Django's question for the server's facts, which a pool knows, and asks once",
    r"SET SESSION TRANSACTION ISOLATION LEVEL": "Django's set-up of a new session, which is no dirt",
    r"(CREATE|ALTER|DROP|ANALYZE) ": "migrations and other DDL",
    r"SELECT @@innodb_strict_mode": "reads system variables: django-mysql's checks",
    r"SELECT @@max_connections": "likewise: this package's checks of a database",
    r"(SET|SELECT) (@@lock_wait_timeout|@overridden_\w+)": "variables: django-mysql's override_mysql_variables",
    r"SET FOREIGN_KEY_CHECKS = [01]": "variables: Django's flush of the tables, for a TransactionTestCase",
    r"SELECT (GET|RELEASE)_LOCK\(%s": "a lock that lives in the session: django-mysql's Lock",
    r"(LOCK|UNLOCK) TABLES": "likewise: django-mysql's TableLock",
    r"INSERT INTO `cache_of_\w+`.*@tmp_now": "a user variable: django-mysql's cache.add()",
    r"SET PROFILING=": "no reset clears it: the debug toolbar's view of a query's profile",
    r"(SET|SELECT) @left_behind": "a trace of the tests' own",
}


@pytest.fixture(scope="module", autouse=True)
def corpus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No statement of a companion's, nor of the ORM's for it, counts as dirty, unless ``DIRTY`` says why."""
    from django_mysqlpool.mysqlpool.statements import analyser_for  # once Django is set up

    with recording(tmp_path_factory.mktemp("corpus") / "statements") as recorded:
        yield
        observer = Observer(server)
        analyse = analyser_for(observer.query("SELECT VERSION()")[0][0], "utf8mb4")
        observer.close()
        dirty = {sql for sql in recorded() if analyse(sql).on_session}
        assert not {sql for sql in dirty if not any(re.match(pattern, sql, re.DOTALL) for pattern in DIRTY)}


@pytest.fixture(scope="module")
def serve_companion(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Serves a site, with one of the settings in ``sites``, in one process: ``serve_companion("gunicorn", "toolbar")``."""
    observer = Observer(server)
    with serving(server, observer, tmp_path_factory.mktemp("companion")) as serve:

        def start(kind: str, settings: str = "", **environment: str) -> Site:
            if settings:
                environment["DJANGO_SETTINGS_MODULE"] = f"{__package__}.sites.{settings}"
            return serve(kind, pool={"pool_size": CAP, "max_overflow": 0}, at_most=CAP, **environment)

        yield start
    observer.close()


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn wrapped"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of web server."""
    return request.param
