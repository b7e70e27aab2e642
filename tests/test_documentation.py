"""The pages, compared with the code: what they quote, list and claim."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import django
import pytest
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from packaging.version import Version

import django_mysqlpool
from django_mysqlpool import middleware, pool_statistics, pool_status, threading_utils
from django_mysqlpool.mysqlpool.backend.settings import pool_options
from django_mysqlpool.mysqlpool.options import PoolOptions
from django_mysqlpool.mysqlpool.pool.slot_pool import SlotPool
from django_mysqlpool.mysqlpool.pool.states import CloseReason
from django_mysqlpool.threading_utils.testing import run_in_calling_thread

pytestmark = [pytest.mark.python, pytest.mark.django]

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^[ ]*```(\S+)\n(.*?)^[ ]*```$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def plain(text: str) -> str:
    """A text in one line, as it is compared."""
    return " ".join(text.split())


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(text) if found == language]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the tables' rows."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@cache
def said_by_the_package() -> list[str]:
    """The strings of the package's code, with ``...`` for each value that is put into them."""
    found = []
    for file in sorted((ROOT / "django_mysqlpool").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(plain(re.sub(r"%[.\d]*\w", "...", node.value)))
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append(plain("".join(parts)))
    return found


def is_said(quoted: str) -> bool:
    """Whether the package has a string of which this could be made, at least up to where another one begins."""
    return any(
        re.match(".*?".join(map(re.escape, said.split("..."))), quoted) for said in said_by_the_package() if len(said) > 20
    )


def paths(text: str) -> set[str]:
    """The dotted names of the package's that a text has."""
    return set(re.findall(r"\bdjango_mysqlpool(?:\.[a-zA-Z_]\w*)+", text))


class TestInstalling:
    """PyPI has the release of 2013, until a final version of this one is there."""

    @pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
    def test_no_command_gets_the_release_of_2013(self, file):
        commands = "\n".join(blocks(file.read_text(), "sh"))
        if Version(django_mysqlpool.__version__).is_prerelease:
            assert not re.search(r"pip install (.* )?\"?django-mysqlpool\b(?!-)", commands)

    def test_a_final_version_is_installed_from_pypi(self):
        if not Version(django_mysqlpool.__version__).is_prerelease:
            assert "not on PyPI" not in page("README.md") + page("docs/quickstart.md")

    def test_both_pages_say_the_same_of_versions(self):
        """Each with its own links."""
        items = [
            re.findall(
                r"^- ((?:MariaDB|SQLAlchemy|mysqlclient) .*(?:\n  .*)*)", page(name).replace("docs/", ""), re.MULTILINE
            )
            for name in ("README.md", "docs/quickstart.md")
        ]
        assert len(items[0]) == 3
        assert items[0] == items[1]

    def test_the_servers_are_those_of_django(self):
        from django.db import connection

        (line,) = (line for line in plain(page("README.md")).split(" - ") if line.startswith("MariaDB 10.6"))
        mysql, mariadb = (self.minimum(connection, is_mariadb) for is_mariadb in (False, True))
        numbers = {tuple(map(int, number.split("."))) for number in re.findall(r"\d+(?:\.\d+)+", line)}
        if django.VERSION >= (6, 1):
            assert {mysql, mariadb} <= numbers
        else:
            assert mysql in numbers
            assert mariadb <= (10, 6)

    @staticmethod
    def minimum(connection: Any, is_mariadb: bool) -> tuple[int, ...]:
        """The oldest server that the installed Django works with."""
        features = type(connection.features)

        class Asked:
            class connection:
                mysql_is_mariadb = is_mariadb

        return inspect.getattr_static(features, "minimum_database_version").func(Asked)


class TestSettings:
    text = page("docs/settings.md")

    def refusal(self, **entry: Any) -> str:
        with pytest.raises(ImproperlyConfigured) as caught:
            pool_options("default", {"OPTIONS": {}, **entry})
        return str(caught.value)

    def test_the_errors_are_quoted_as_they_are(self):
        unknown, max_age = (plain(block) for block in blocks(self.text, "text"))
        assert unknown == self.refusal(OPTIONS={"pool": {"pool_siz": 5}})
        assert max_age == self.refusal(CONN_MAX_AGE=60)

    @property
    def documented(self) -> dict[str, str]:
        """The default of each key, as the tables have it."""
        found = {}
        for row in rows(self.text):
            if len(row) == 5 and row[0] != "Key":
                found |= dict.fromkeys(re.findall(r"`(\w+)`", row[0]), row[2].strip("`"))
        return found

    def test_each_key_has_a_row(self):
        known = self.refusal(OPTIONS={"pool": {"pool_siz": 5}}).partition("Known keys: ")[2].partition(". ")[0]
        assert set(self.documented) == {*known.split(", "), "pool_class"}

    def test_the_defaults(self):
        defaults = {
            name: parameter.default
            for cls in (SlotPool, PoolOptions)
            for name, parameter in inspect.signature(cls).parameters.items()
        }
        defaults |= {"pre_ping": False, "reset_on_return": None, "pool_class": "MYSQLPOOL_BACKEND"}
        for key, default in self.documented.items():
            if default:
                assert str(defaults[key]).removesuffix(".0") == default.strip('"'), key


SETTINGS = """
import os
SECRET_KEY = "of a project with a wrong setting"
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = os.environ.get("APPS", "").split()
MIDDLEWARE = os.environ.get("MIDDLEWARE", "").split()
STOCK, POOLED = "django.db.backends.mysql", "django_mysqlpool.backends.mysqlpool"
def entry(alias):
    wrong = {"pool": {"pool_siz": 1}} if os.environ["WRONG"] == alias else {}
    engine = STOCK if os.environ.get("STOCK") == alias else POOLED
    return {"ENGINE": engine, "NAME": alias, "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": wrong}
DATABASES = {alias: entry(alias) for alias in ("default", "other")}
"""
STEPS = """
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.wsgi import get_wsgi_application
from django.db import connections
for name, step in (
    ("start", get_wsgi_application),
    ("check", lambda: call_command("check")),
    ("use", lambda: [connections[alias] for alias in ("default", "other")]),
):
    try:
        step()
    except (ImproperlyConfigured, CommandError) as error:
        assert "has the key 'pool_siz'" in str(error), error
        print(name)
        break
"""
MODELS = "django.contrib.contenttypes django.contrib.auth"
MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"


class TestWhenWrongSettingsAreFound:
    """``docs/settings.md`` and ``docs/checks.md`` say it; no server is needed to find them."""

    @pytest.fixture
    def found_at(self, tmp_path):
        """The step at which a process meets the wrong setting."""
        (tmp_path / "settings.py").write_text(SETTINGS)
        (tmp_path / "urls.py").write_text("urlpatterns = []")

        def run(**environment: str) -> str:
            environment = {"PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "settings", **environment}
            done = subprocess.run(
                [sys.executable, "-c", STEPS], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()[-1]

        return run

    def test_of_the_default_alias_when_the_process_starts(self, found_at):
        assert found_at(WRONG="default", APPS=MODELS) == "start"

    def test_of_any_alias_when_the_process_starts_with_the_middleware(self, found_at):
        assert found_at(WRONG="default", MIDDLEWARE=MIDDLEWARE) == "start"
        assert found_at(WRONG="other", STOCK="default", MIDDLEWARE=MIDDLEWARE) == "start"

    @pytest.mark.skipif(django.VERSION >= (6, 1), reason="its checks of models ask the server, which is not there")
    def test_of_another_by_the_checks(self, found_at):
        assert found_at(WRONG="other", APPS=MODELS) == "check"

    @pytest.mark.skipif(django.VERSION >= (6, 1), reason="its checks of models ask the server, which is not there")
    def test_by_the_first_use_if_the_checks_are_not_registered(self, found_at):
        assert found_at(WRONG="other", STOCK="default", APPS=MODELS) == "use"
        assert found_at(WRONG="default") == "use"

    def test_registering_them_as_the_page_has_it(self, found_at):
        listed: dict[str, Any] = {}
        exec(blocks(page("docs/checks.md"), "python")[0], listed)
        assert found_at(WRONG="other", STOCK="default", APPS=" ".join(listed["INSTALLED_APPS"])) == "check"


class TestErrors:
    text = page("docs/errors.md")

    def test_the_log_lines_are_those_of_the_code(self):
        lines = [row[1].strip("`") for row in rows(self.text) if row[0] in {"error", "warning", "info"}]
        assert len(lines) > 5
        for line in lines:
            assert is_said(line), line

    def test_the_advice_of_a_pool_timeout_is_that_of_the_code(self):
        quoted = plain(blocks(self.text, "text")[0])
        for sentence in re.split(r"(?<=[.]) (?=No|The|Give)", quoted):
            assert is_said(sentence), sentence

    def test_each_exception_has_a_section(self):
        for name in django_mysqlpool.__all__:
            if isinstance(getattr(django_mysqlpool, name), type) and issubclass(getattr(django_mysqlpool, name), Exception):
                assert f"\n## {name}\n" in self.text


def our_checks() -> list[Any]:
    return [check for check in registry.get_checks(True) if check.__module__.startswith("django_mysqlpool.checks.")]


def source_of_checks() -> str:
    return "".join(file.read_text() for file in sorted((ROOT / "django_mysqlpool" / "checks").glob("*.py")))


class TestChecks:
    text = page("docs/checks.md")

    def test_each_has_a_section_with_its_words(self):
        source = source_of_checks()
        sections = re.findall(r"\n## django_mysqlpool\.(\w+)\n\n> (.*)\n", self.text)
        assert {number for number, _ in sections} == set(re.findall(r'id="django_mysqlpool\.(\w+)"', source))
        assert len(our_checks()) == len(set(re.findall(r"def (check_\w+)", source)))
        for _, words in sections:
            assert is_said(re.sub(r"\d+ in", "3 in", words)), words

    def test_each_is_linked_to_by_its_own_hint(self):
        for number in re.findall(r"\n## django_mysqlpool\.(\w+)\n", self.text):
            assert f"({number.lower()})=\n" in self.text
            assert f"#{number.lower()}" in source_of_checks()


class TestStatus:
    """The dict of ``pool_status()``, wherever a page shows one."""

    def shown(self, name: str) -> list[dict[str, Any]]:
        text = re.sub(r"\n# {3,}", " ", page(name))
        found = re.findall(r"^(?:# )?(\{\s*['\"]shop@.*?\}\s*\})$", text, re.DOTALL | re.MULTILINE)
        return [status for dumped in found for status in ast.literal_eval(dumped).values()]

    @pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/status.md"])
    def test_its_keys(self, name):
        from django.db import connection

        connection.ensure_connection()
        connection.close()
        (status,) = (status for status in pool_status().values() if status["aliases"] == ["default"])
        assert json.dumps(status)
        statuses = self.shown(name)
        assert statuses
        for shown in statuses:
            assert list(shown) == list(status)
            assert shown["open"] == shown["idle"] + shown["out"]
            assert shown["cap"] == 12, "the quick start's settings"

    def test_each_key_is_explained(self):
        text = page("docs/status.md")
        explained = [row[0].strip("`") for row in rows(text.partition("## Statistics")[0])]
        assert explained[1:] == list(self.shown("docs/status.md")[0])

    def test_each_count_and_each_reason_is_explained(self):
        from django.db import connection

        connection.ensure_connection()
        connection.close()
        (counts,) = (counts for counts in pool_statistics().values() if counts["aliases"] == ["default"])
        text = page("docs/status.md").partition("## Statistics")[2]
        of_counts, _, of_reasons = text.partition("### Why a connection was closed")
        named = set(re.findall(r"`(\w+)`", of_counts))
        assert named >= set(counts)
        explained = {name for row in list(rows(of_counts))[1:] for name in re.findall(r"`(\w+)`", row[0])}
        assert explained <= set(counts)
        reasons = [row[0].strip("`") for row in list(rows(of_reasons))[1:]]
        assert reasons == list(get_args(CloseReason))

    def test_the_session_of_the_quick_start(self):
        """In a shell, from a process that has not used the database yet."""
        django_mysqlpool.close_pool()
        (session,) = blocks(page("docs/quickstart.md"), "pycon")
        names: dict[str, Any] = {}
        compared = 0
        for example in doctest.DocTestParser().get_examples(session):
            code = compile(example.source, "quickstart", "single" if not example.want else "eval")
            if not example.want:
                exec(code, names)
                continue
            (shown,) = ast.literal_eval(example.want).values()
            (status,) = (found for found in eval(code, names).values() if found["aliases"] == ["default"])
            assert {**shown, **{key: status[key] for key in ("address", "cap", "size", "pins")}} == status
            compared += 1
        assert compared == 2


PUBLIC = {
    **{f"django_mysqlpool.{name}": getattr(django_mysqlpool, name) for name in django_mysqlpool.__all__},
    **{f"django_mysqlpool.middleware.{name}": getattr(middleware, name) for name in middleware.__all__},
    **{
        f"django_mysqlpool.checks.{check.__name__}": check
        for check in sorted(our_checks(), key=lambda check: check.__name__)
    },
    "django_mysqlpool.threading_utils.PooledExecutorASGI": threading_utils.PooledExecutorASGI,
    "django_mysqlpool.threading_utils.testing.run_in_calling_thread": run_in_calling_thread,
}


class TestPublicNames:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_it_is_on_the_page(self, name):
        assert re.search(rf":: {re.escape(name)}$", page("docs/api.md"), re.MULTILINE)

    @pytest.mark.parametrize("name", PUBLIC)
    def test_its_docstring_has_a_field_for_each_parameter(self, name):
        thing = PUBLIC[name]
        documented = set(re.findall(r":(?:param|ivar)(?: [^:]*?)? (\w+):", thing.__doc__))
        if isinstance(thing, type) and issubclass(thing, Exception):
            raised = thing("an alias")
            assert documented == {key for key in vars(raised) if not key.startswith("_")}
            return
        has_some = not isinstance(thing, type) or "__init__" in vars(thing)
        parameters = set(inspect.signature(thing).parameters) if has_some else set()
        assert parameters <= documented, name

    @pytest.mark.parametrize("name", PUBLIC)
    def test_its_docstring_begins_with_one_line(self, name):
        first, *rest = inspect.getdoc(PUBLIC[name]).splitlines()
        assert first.endswith(".")
        assert not rest or not rest[0]


class TestWhatPagesName:
    @pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
    def test_exists_in_the_package(self, file):
        for path in paths(file.read_text()):
            if re.fullmatch(r"django_mysqlpool\.[EW]\d{3}", path):
                assert path in source_of_checks()
            elif not path.startswith("django_mysqlpool.backends.mysqlpool_gis"):  # which loads GDAL
                assert can_be_imported(path), path

    @pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
    def test_exists_in_the_makefile(self, file):
        targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
        text = file.read_text()
        named = re.findall(r"`make ([a-z-]+)", text) + re.findall(
            r"^make ([a-z-]+)", "\n".join(blocks(text, "sh")), re.MULTILINE
        )
        assert set(named) <= targets

    @pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
    def test_exists_in_the_repository(self, file):
        for name in re.findall(r"`((?:tests|devtools|docs|example)/[\w/.]*)`", file.read_text()):
            if "_build" not in name:  # which is made
                assert (ROOT / name).exists(), name

    @pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
    def test_is_python_where_it_says_so(self, file):
        for block in blocks(file.read_text(), "python"):
            source = dedent(block)
            if source.startswith('"'):  # an entry of a dict
                source = f"{{{source}}}"
            compile(source, file.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def can_be_imported(path: str) -> bool:
    try:
        import_module(path)
    except ImportError as error:
        if "install the extra" in str(error):
            return True  # it is there, and what it needs is not
        try:
            import_string(path)
        except ImportError:
            return False
    return True
