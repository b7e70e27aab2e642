"""Wrong options of an alias, in processes of their own: who tells a person of them, and in how many lines.

No server of the database is there: the processes must not come so far as to connect.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import django
import pytest

pytestmark = [pytest.mark.django, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
MIDDLEWARE = "django_mysqlpool.middleware.ConnectionReleaseMiddleware"
SENTENCE = "OPTIONS['pool'] has the key 'pool_siz', which QueuePool does not know. Did you mean 'pool_size'? Known keys: "
FILES = {
    "manage.py": """
        import sys
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
    """,
    "shop/__init__.py": "",
    "shop/settings.py": """
        import os
        SECRET_KEY = "of a shop"
        USE_TZ = True
        ALLOWED_HOSTS = ["*"]
        ROOT_URLCONF = "shop.urls"
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
        MIDDLEWARE = os.environ.get("MIDDLEWARE", "").split()
        def entry(alias):
            options = {"pool": {"pool_siz": 1}} if os.environ["WRONG"] == alias else {}
            engine = "django_mysqlpool.backends.mysqlpool"
            return {"ENGINE": engine, "NAME": alias, "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": options}
        DATABASES = {alias: entry(alias) for alias in ("default", "other")}
    """,
    "shop/urls.py": "urlpatterns = []",
    "shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()",
    "shop/asgi.py": "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()",
    "shop/starlette.py": """
        import django
        from django_mysqlpool.middleware import ConnectionReleaseASGI
        django.setup()
        async def application(scope, receive, send): ...
        application = ConnectionReleaseASGI(application)
    """,
    "shop/tasks.py": """
        from celery import Celery
        app = Celery("shop", broker="memory://")
    """,
    "shop/management/commands/use.py": """
        from django.core.management.base import BaseCommand
        from django.db import connections
        class Command(BaseCommand):
            requires_system_checks = []
            def add_arguments(self, parser):
                parser.add_argument("alias")
            def handle(self, alias, **options):
                print("before")
                connections[alias].ensure_connection()
    """,
}


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in FILES.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text))

    def run(self, *command: str, wrong: str = "default", middleware: str = MIDDLEWARE) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))),
            "WRONG": wrong,
            "MIDDLEWARE": middleware,
        }
        return subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            cwd=self.folder, env=environment, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def manage(self, *command: str, **how: str) -> subprocess.CompletedProcess[str]:
        return self.run("manage.py", *command, **how)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def first_line(text: str) -> str:
    return text.strip().splitlines()[0]


class TestCommands:
    @pytest.mark.parametrize("wrong", ["default", "other"])
    @pytest.mark.parametrize("command", [["check"], ["dumpdata"], ["runserver", "--noreload", "1"]], ids=lambda c: c[0])
    def test_those_that_run_the_checks(self, project, command, wrong):
        if django.VERSION >= (6, 1) and wrong == "other":
            pytest.skip("its checks of models ask the server, which is not there")
        done = project.manage(*command, wrong=wrong)
        assert done.returncode == 1
        if django.VERSION >= (6, 1):  # whose checks of models connect before any check is shown
            assert done.stderr.startswith(f"WrongOptions: {SENTENCE}")
            return
        assert first_line(done.stderr) == "SystemCheckError: System check identified some issues:"
        assert f"?: (django_mysqlpool.E004) {SENTENCE}" in done.stderr
        assert f"(database alias '{wrong}')" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("command", ["check --tag compatibility", "check --tag compatibility --fail-level CRITICAL"])
    def test_the_level_is_an_error(self, project, command):
        assert project.manage(*command.split()).returncode == ("CRITICAL" not in command)

    @pytest.mark.parametrize("command", ["migrate", "use default", "check --database default"])
    def test_those_that_connect_show_one_line(self, project, command):
        done = project.manage(*command.split())
        assert done.returncode == 1
        assert first_line(done.stderr).startswith(f"WrongOptions: {SENTENCE}")
        assert len(done.stderr.strip().splitlines()) == 1

    def test_those_that_need_no_connection_run(self, project):
        done = project.manage("shell", "-c", "print('ran')")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ran")

    def test_the_error_is_new_each_time(self, project):
        """One object would keep all frames that it has passed."""
        program = """if True:
            from django.core.exceptions import ImproperlyConfigured
            from django.db import connection
            seen = []
            for _ in range(2):
                try:
                    connection.ensure_connection()
                except ImproperlyConfigured as error:
                    seen.append(error)
            print(len(seen), seen[0] is not seen[1], connection.pool)
        """
        assert project.manage("shell", "-c", program).stdout.splitlines()[-1] == "2 True None"


class TestServers:
    @pytest.mark.parametrize("wrong", ["default", "other"])
    @pytest.mark.parametrize("module", ["shop.wsgi", "shop.asgi", "shop.starlette"])
    def test_they_do_not_start(self, project, module, wrong):
        done = project.run("-c", f"import {module}", wrong=wrong)
        assert done.returncode == 1
        assert f": {SENTENCE}" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize("module", ["shop.wsgi", "shop.asgi"])
    def test_the_traceback_is_short_with_the_middleware(self, project, module):
        done = project.run("-c", f"import {module}")
        assert len(done.stderr.splitlines()) < 30
        assert "apps/registry.py" not in done.stderr

    @pytest.mark.parametrize("module", ["shop.wsgi", "shop.asgi"])
    def test_without_the_middleware_nothing_else_would_tell_it(self, project, module):
        done = project.run("-c", f"import {module}", middleware="")
        assert done.returncode == 1
        assert f"django.core.exceptions.ImproperlyConfigured: {SENTENCE}" in done.stderr.splitlines()[-1]

    def test_gunicorn_ends_with_the_sentence(self, project):
        done = project.run("-m", "gunicorn", "shop.wsgi", "--bind", "127.0.0.1:0")
        assert done.returncode != 0
        assert any(line.startswith(SENTENCE) for line in done.stderr.splitlines())


@pytest.mark.parametrize("wrong", ["default", "other"])
def test_a_worker_of_celerys_does_not_start(project, wrong):
    """It runs the checks, and goes on if they find errors; so this one is raised."""
    if django.VERSION >= (6, 1) and wrong == "other":
        pytest.skip("its checks of models ask the server, which is not there")
    done = project.run("-m", "celery", "-A", "shop.tasks", "worker", "--pool", "solo", "--without-gossip", wrong=wrong)
    assert done.returncode != 0
    assert f"ImproperlyConfigured: {SENTENCE}" in done.stderr


def test_a_script_fails_where_it_sets_django_up(project):
    done = project.run("-c", "import django\ndjango.setup()")
    assert f"django.core.exceptions.ImproperlyConfigured: {SENTENCE}" in done.stderr.splitlines()[-1]
