"""Builds the wheel, installs it into an empty environment, and follows the README's quick start there.

    python -m devtools.try_wheel

The settings are the README's own text: the database, the user and the password that it names are made on a private server,
and only the port is another one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from devtools.server import Server, server_from_environment

ROOT = Path(__file__).resolve().parent.parent
LOOK = """
from django.contrib.auth.models import User
from django.db import connection
from django_mysqlpool import pool_status
assert User.objects.count() == 0
connection.close()
(status,) = pool_status().values()
assert (status["cap"], status["idle"], status["out"]) == (12, 1, 0), status
print(status)
"""


def quick_start() -> str:
    """The settings that the README shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "DATABASES" in block)


def run(*command: object, folder: Path) -> None:
    """Run a command that must succeed, under the rule that a warning is an error."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error::ResourceWarning"}
    subprocess.run([str(part) for part in command], cwd=folder, env=environment, check=True)


def admit(server: Server) -> None:
    """Make what the README's settings name."""
    connection = server.connect()
    for statement in (
        "CREATE DATABASE shop",
        "CREATE USER 'shop'@'%' IDENTIFIED BY '...'",
        "GRANT ALL ON shop.* TO 'shop'@'%'",
    ):
        connection.query(statement)
    connection.close()


def main() -> None:
    """Build, install, follow."""
    with TemporaryDirectory() as name, server_from_environment() as server:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
        run(python, "-m", "django", "startproject", "site1", folder, folder=folder)
        with (folder / "site1" / "settings.py").open("a") as settings:
            settings.write("\n_middleware = MIDDLEWARE\n" + quick_start().replace('"3306"', f'"{server.port}"'))
            settings.write("\nMIDDLEWARE += _middleware\n")
        admit(server)
        run(python, "manage.py", "check", "--fail-level=WARNING", folder=folder)
        run(python, "manage.py", "migrate", "--verbosity=0", folder=folder)
        run(python, "manage.py", "shell", "--command", LOOK, folder=folder)
        print(f"{wheel.name}: the quick start works")


if __name__ == "__main__":
    main()
