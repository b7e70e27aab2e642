"""A page of ``docs/moving``, and the small project to which its steps are applied, as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import port_for
from mirakuru import HTTPExecutor

from devtools.lifeline import tied

PAGES = Path(__file__).resolve().parent.parent / "docs" / "moving"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: In the environment of the project: its own login, which no page can know.
_LOGIN = "MOVING_LOGIN"

# What is there before the move, beside what the page shows.
_FILES = {
    "manage.py": """
from django.core.management import execute_from_command_line
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
execute_from_command_line(sys.argv)
""",
    "shop/__init__.py": "",
    "shop/models.py": """
from django.db import models

class Order(models.Model):
    customer = models.IntegerField()
    total = models.IntegerField()
""",
    "shop/urls.py": """
import threading
from django.db import connection
from django.http import JsonResponse
from django.urls import path
from shop.models import Order

def fetch(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()

def order(request):
    Order.objects.create(customer=1, total=5)
    seconds = 0.05  # so that requests meet
    connection_id, _ = fetch(f"SELECT CONNECTION_ID(), SLEEP({seconds})")
    return JsonResponse({"connection": connection_id, "thread": threading.get_ident()})

def leave(request):
    with connection.cursor() as cursor:
        cursor.execute("SET @left = 5")
    return JsonResponse({})

def left(request):
    found, = fetch("SELECT @left")
    return JsonResponse({"found": found})

def status(request):
    from django_mysqlpool import pool_status
    return JsonResponse(pool_status())

urlpatterns = [path(f"{view.__name__}/", view) for view in (order, leave, left, status)]
""",
    "shop/wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
application = get_wsgi_application()
""",
}
_SETTINGS = f"""
import json, os

SECRET_KEY = "of a project that moves"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SHOWN = ...
DATABASES["default"].update(json.loads(os.environ["{_LOGIN}"]))
"""


class Page:
    """What a page shows: the files before the move, its steps, and what the commands say."""

    def __init__(self, name: str) -> None:
        self.text = (PAGES / f"{name}.md").read_text()
        blocks = [(language, body) for language, body in _BLOCK.findall(self.text)]
        #: Files as they are before the move; the first line of each block names it.
        self.before = dict(_named(body, "# ") for language, body in blocks if language == "python")
        #: The steps: the file that each changes, and how.
        self.steps = [_named(body, "--- ") for language, body in blocks if language == "diff"]
        #: What the commands print, as the page has it.
        self.quoted = [plain(body) for language, body in blocks if language == "text"]

    def rows(self, heading: str) -> list[list[str]]:
        """The cells of the table below a heading, without its head."""
        _, _, below = self.text.partition(f"\n## {heading}\n")
        lines = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _named(body: str, mark: str) -> tuple[str, str]:
    first, _, rest = body.partition("\n")
    assert first.startswith(mark), f"a block that does not say which file it is of: {first}"
    return first.removeprefix(mark), rest


def plain(text: str) -> str:
    """A text without its line breaks, which are another matter in a page than on a terminal."""
    return " ".join(text.split())


def patched(text: str, change: str) -> str:
    """The text with a change made at the one place that it fits."""
    old = "".join(line[1:] for line in change.splitlines(keepends=True) if not line.startswith("+"))
    new = "".join(line[1:] for line in change.splitlines(keepends=True) if not line.startswith("-"))
    assert text.count(old) == 1, f"the step fits {text.count(old)} places:\n{change}\n{text}"
    return text.replace(old, new)


class Project:
    """A project in a folder of its own, which starts from what a page shows."""

    def __init__(self, folder: Path, page: Page, login: dict[str, Any]) -> None:
        self.folder = folder
        self._environment = {_LOGIN: json.dumps(login), "PYTHONPATH": str(folder), "PYTHONWARNINGS": "error"}
        shown = dict(page.before)
        settings = _SETTINGS.replace("SHOWN = ...\n", shown.pop("shop/settings.py"))
        for name, text in {**_FILES, **shown, "shop/settings.py": settings}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def apply(self, *steps: tuple[str, str]) -> None:
        """Change the files as the steps say."""
        for name, change in steps:
            file = self.folder / name
            file.write_text(patched(file.read_text(), change))

    def migrate(self) -> None:
        """Make the tables, where they are missing."""
        self.manage("migrate", "--run-syncdb", "--verbosity=0")

    def manage(self, *command: str, succeeds: bool = True) -> str:
        """What ``manage.py`` prints, in one line."""
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=self.folder,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is succeeds, done.stdout + done.stderr
        return plain(done.stdout + done.stderr)

    @contextmanager
    def served(self, threads: int) -> Iterator[httpx.Client]:
        """A client of the project under gunicorn, one process of some threads; no traceback may be in its log."""
        port, log = port_for.select_random(), self.folder / "gunicorn.log"
        command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", "--no-control-socket"]
        command += ["--worker-class=gthread", f"--threads={threads}", "shop.wsgi"]
        with (
            log.open("w") as output,
            HTTPExecutor(
                tied(command),
                url=f"http://127.0.0.1:{port}/left/",
                method="GET",
                timeout=60,
                envvars=self._environment,
                cwd=str(self.folder),
                stdout=output,
                stderr=subprocess.STDOUT,
                expected_returncode=0,
            ),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            yield client
        assert "Traceback" not in log.read_text(), log.read_text()
