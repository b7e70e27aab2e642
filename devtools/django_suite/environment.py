"""Django's source, an interpreter that has what its tests need, and a folder for each time they are run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITHIN = Path(__file__).resolve().parent / "within"
FOLDER = ROOT / ".django-suite"
#: Tests are skipped without these, which need a server, a browser or a library, and tell nothing of a database.
LEFT_OUT = {"black", "geoip2", "pylibmc", "pymemcache", "pywatchman", "redis", "selenium"}


class EnvironmentProblem(Exception):
    """A message for a person: what can't be had, and why."""


class Environment:
    """All of it for one version of Django, made by ``make`` and kept in a folder of the checkout."""

    def __init__(self, django: str) -> None:
        self.django = django
        self.folder = FOLDER / django

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "venv/bin/python"

    @cached_property
    def run_folder(self) -> Path:
        """A new folder for what is run now: beside others, or while the checkout changes."""
        return Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))

    @property
    def package(self) -> Path:
        """Where this project's package is, as it was when it was installed."""
        return self.run_folder / "package"

    @cached_property
    def source(self) -> Path:
        """Django's source distribution, the newest of its version that was there when it was fetched."""
        found = sorted(self.folder.glob("*jango-*.tar.gz"))
        if not found:
            raise EnvironmentProblem(f"PyPI has no Django {self.django}")
        return found[-1]

    @property
    def version(self) -> str:
        """Django's full version."""
        return re.sub(r".*jango-(.*)\.tar\.gz", r"\1", self.source.name)

    def make(self, tell: Callable[[str], None]) -> None:
        """Fetch and install what isn't there yet, and this project's package as it is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not list(self.folder.glob("*.tar.gz")):
            tell(f"fetching the source of Django {self.django}")
            self._fetch()
        stamp = self.folder / "venv/set-up"
        what = (self._interpreter(), self.source.name, self._requirements(), (ROOT / "pyproject.toml").read_text())
        identity = sha256(repr(what).encode()).hexdigest()
        if not stamp.exists() or stamp.read_text() != identity:
            tell(f"installing Django {self.version} and what its tests need")
            run(self._interpreter(), "-m", "venv", "--clear", self.folder / "venv")
            self._install(self.source, *self._requirements())
            self._install(ROOT)  # for what it depends on
            stamp.write_text(identity)
        tell("installing this package")
        self._install("--no-deps", "--target", self.package, ROOT)

    def unpack_tests(self, folder: Path) -> Path:
        """A copy of Django's tests: some of them write beside themselves."""
        with tarfile.open(self.source) as archive:
            archive.extractall(folder, filter=_only_tests)
        return folder / "tests"

    def _fetch(self) -> None:
        how = ("--no-deps", "--no-binary=:all:", "--ignore-requires-python", "--dest", self.folder)
        run(sys.executable, "-m", "pip", "download", *how, f"Django=={self.django}.*")

    def _read(self, name: str) -> str:
        with tarfile.open(self.source) as archive:
            top = archive.getnames()[0].partition("/")[0]
            file = archive.extractfile(f"{top}/{name}")
            assert file is not None
            return file.read().decode()

    def _requirements(self) -> list[str]:
        lines = self._read("tests/requirements/py3.txt").splitlines()
        named = [line for line in lines if line.strip() and not line.startswith("#")]
        return [line for line in named if _name(line) not in LEFT_OUT]

    def _interpreter(self) -> str:
        """The interpreter of this process, where that is new enough; otherwise the newest that is found."""
        oldest = int(re.search(r"^Requires-Python: >=\s*3\.(\d+)", self._read("PKG-INFO"), re.MULTILINE)[1])  # type: ignore[index]
        if sys.version_info >= (3, oldest):
            return sys.executable
        for minor in range(oldest + 5, oldest - 1, -1):
            if found := shutil.which(f"python3.{minor}"):
                return found
        raise EnvironmentProblem(f"Django {self.django} needs Python 3.{oldest} or newer, and none was found on PATH")

    def _install(self, *what: object) -> None:
        run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


def run(*command: object) -> None:
    """Run a command that says nothing unless it fails."""
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentProblem(f"{' '.join(map(str, command))}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def _name(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement.strip())[0]


def _only_tests(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    _, _, rest = member.name.partition("/")
    if not rest.startswith("tests/"):
        return None
    return tarfile.data_filter(member.replace(name=rest, deep=False), folder)
