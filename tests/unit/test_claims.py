"""What the package says it supports is what the matrix runs, and what a line of the matrix is called is what it runs."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from configparser import RawConfigParser
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent.parent
CLAIMS = metadata("django-mysqlpool")


def requirement(text: str) -> Requirement:
    """A requirement, by the name that its package is found by."""
    found = Requirement(text)
    found.name = canonicalize_name(found.name)
    return found


# (Of the extras, but for the other driver, each has a subject, and a test, of its own.)
REQUIRED = [requirement(text) for text in CLAIMS.get_all("Requires-Dist") if "pymysql" in text or "extra ==" not in text]


def claimed(kind: str) -> list[str]:
    """The versions in the classifiers of a kind, oldest first."""
    return re.findall(rf"^{kind} :: (\d+\.\d+)$", "\n".join(CLAIMS.get_all("Classifier")), re.MULTILINE)


PYTHONS, DJANGOS = claimed("Programming Language :: Python"), claimed("Framework :: Django")


_, _, AFTER = (ROOT / "pyproject.toml").read_text().partition("\nmarkers = [\n")
#: The marks of tests.
MARKS = re.findall(r'^    "(\w+): [^"]*",$', AFTER, re.MULTILINE)
#: The mark of what rests on a library.
REST_ON = {"django": "django", "sqlalchemy": "sqlalchemy", "mysqlclient": "driver", "pymysql": "driver"}
REST_ON["asgiref"] = "asgiref"


def holds(condition: str, line: str) -> bool:
    """Whether what ``tox.ini`` says under this condition goes for a line."""
    factors = set(line.split("-"))
    return any(
        all((name.lstrip("!") in factors) is not name.startswith("!") for name in names.split("-"))
        for names in condition.split(",")
    )


class Matrix:
    """What ``tox.ini`` says."""

    def __init__(self) -> None:
        parser = RawConfigParser()
        parser.read(ROOT / "tox.ini")
        self.lines = parser["tox"]["env_list"].split()
        self._deps = [dep.split(": ") for dep in parser["testenv"]["deps"].strip().splitlines()]
        self._commands = [command.split(": ", 1) for command in parser["testenv"]["commands"].strip().splitlines()]

    def pins(self, line: str) -> dict[str, SpecifierSet]:
        """What a line asks for beside what the package requires."""
        found = (requirement(text) for condition, text in self._deps if holds(condition, line))
        return {one.name: one.specifier for one in found}

    def runs(self, line: str, mark: str) -> bool:
        """Whether a line runs the tests that have this mark and no other one."""
        (command,) = (command for condition, command in self._commands if holds(condition, line))
        (expression,) = re.findall(r'-m "(.*?)"', command)
        return bool(eval(expression, {}, {name: name == mark for name in MARKS}))


MATRIX = Matrix()


def python_of(line: str) -> str:
    return re.sub(r"py(\d)(\d+)-.*", r"\1.\2", line)


def required_on(python: str) -> Iterator[Requirement]:
    """What the package requires on a Python, with its extra."""
    environment = {"python_version": python, "extra": "pymysql"}
    return (one for one in REQUIRED if one.marker is None or one.marker.evaluate(environment))


def lowest(specifiers: SpecifierSet) -> str:
    """The one lower bound."""
    (bound,) = specifiers
    assert bound.operator == ">="
    return bound.version


def bounds_of(name: str) -> list[str]:
    """The lower bounds of a library, for older Pythons first."""
    required = [one for one in REQUIRED if one.name == canonicalize_name(name)]
    return sorted((lowest(one.specifier) for one in required), key=Version)


class TestTheMatrix:
    def test_it_has_each_python_that_is_claimed(self):
        assert set(PYTHONS) <= {python_of(line) for line in MATRIX.lines}
        assert lowest(SpecifierSet(CLAIMS["Requires-Python"])) == PYTHONS[0]

    def test_it_has_each_django_that_is_claimed(self):
        """The oldest by its lower bound, the newest as what pip takes by itself, those in between by name."""
        lines = " ".join(MATRIX.lines)
        found = {"lowest": DJANGOS[0], "highest": DJANGOS[-1]}
        found |= {f"django{major}{minor}": f"{major}.{minor}" for major, minor in re.findall(r"django(\d)(\d)", lines)}
        assert {name for factor, name in found.items() if factor in lines} == set(DJANGOS)

    @pytest.mark.parametrize("required", REQUIRED, ids=str)
    def test_it_has_each_lower_bound(self, required):
        bound = SpecifierSet(f"=={lowest(required.specifier)}")
        lines = [line for line in MATRIX.lines if MATRIX.pins(line).get(required.name) == bound]
        assert any(required in required_on(python_of(line)) for line in lines)

    def test_the_lowest_have_nothing_but_lower_bounds(self):
        for line in (line for line in MATRIX.lines if "lowest" in line):
            bounds = {one.name: SpecifierSet(f"=={lowest(one.specifier)}") for one in required_on(python_of(line))}
            assert MATRIX.pins(line) == bounds

    def test_it_has_both_release_modes(self):
        assert {MATRIX.runs(line, "mode") for line in MATRIX.lines if "transaction" in line} == {True}

    def test_a_line_runs_what_rests_on_what_it_pins(self):
        """Each bound in one line at least, and each Django and each driver; all unit tests in each."""
        for required in REQUIRED:
            bound = SpecifierSet(f"=={lowest(required.specifier)}")
            lines = [line for line in MATRIX.lines if MATRIX.pins(line).get(required.name) == bound]
            assert any(MATRIX.runs(line, REST_ON[required.name]) for line in lines), required
        for part in ("django60", "highest"):
            assert any(MATRIX.runs(line, "django") for line in MATRIX.lines if part in line)
        assert any(MATRIX.runs(line, "driver") for line in MATRIX.lines if "pymysql" in line)
        for python in (PYTHONS[0], PYTHONS[-1]):
            assert any(MATRIX.runs(line, "python") for line in MATRIX.lines if python_of(line) == python)
        assert all(MATRIX.runs(line, "unit") for line in MATRIX.lines)

    def test_each_mark_is_run_by_a_line_or_on_the_other_server(self):
        run = {mark for mark in MARKS for line in MATRIX.lines if MATRIX.runs(line, mark)}
        assert set(MARKS) - run <= {"server", "slow"}
        assert '-m server"' in (ROOT / ".ci" / "run").read_text()


MODULES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}


class TestTheModulesOfTests:
    @pytest.mark.parametrize("name", MODULES)
    def test_it_says_what_it_rests_on(self, name):
        (said,) = re.findall(r"^pytestmark = (.*?^\S*?)\n(?:\n|\Z)", MODULES[name], re.MULTILINE | re.DOTALL)
        marks = set(re.findall(r"pytest\.mark\.(\w+)", said))
        assert marks & set(MARKS)
        assert ("unit" in marks) == (Path(name).parent.name == "unit")

    @pytest.mark.parametrize("name", MODULES)
    def test_it_takes_nothing_from_another_one(self, name):
        """What several use is in tests/helpers.py, or a fixture."""
        found = re.findall(r"^\s*(?:from|import) tests\.(?:\w+\.)*(?:test_\w+|conftest)\b", MODULES[name], re.MULTILINE)
        assert not found


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="about a line of the matrix")
def test_this_line_runs_what_it_is_called():
    line = os.environ["TOX_ENV_NAME"]
    assert platform.python_version().startswith(f"{python_of(line)}.")
    for name, specifier in MATRIX.pins(line).items():
        assert specifier.contains(version(name)), (name, version(name))
    if "highest" in line:
        assert version("Django").startswith(f"{DJANGOS[-1]}."), "a newer Django is out: claim it"
        series = ".".join(version("SQLAlchemy").split(".")[:2])
        assert f"{series} included" in (ROOT / "README.md").read_text(), "a newer SQLAlchemy is out: claim it"


class TestThePagesSayTheSame:
    @pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
    def test_the_versions(self, page):
        text = " ".join((ROOT / page).read_text().split())
        assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in text
        assert f"Django {', '.join(DJANGOS[:-1])} and {DJANGOS[-1]}" in text
        for name in ("SQLAlchemy", "mysqlclient"):
            assert f"{name} {bounds_of(name)[0]} or newer" in text
        for_python_310, for_others = bounds_of("asgiref")
        assert f"asgiref {for_others} or newer ({for_python_310} on Python 3.10)" in text

    def test_the_workflow(self):
        text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
        matrix, _, _ = text.partition("exclude:")
        listed = {key: json.loads(f"[{values}]") for key, values in re.findall(r"(python|django): \[(.*)\]", matrix)}
        assert listed == {"python": PYTHONS, "django": DJANGOS}
