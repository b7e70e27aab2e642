"""A database server for the tests and the demo: a private one, or one that exists.

``server_from_environment()`` picks: ``MYSQLPOOL_SERVER_URL=mysql://user:password@host:port`` names
a server that exists, ``MYSQLPOOL_SERVER_PROGRAM=/path/to/mysqld`` the program of a private one.
Without either it is the ``mariadbd`` of this machine.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import MySQLdb
import port_for
from mirakuru import TCPExecutor
from mirakuru.base import cleanup_subprocesses
from mirakuru.exceptions import AlreadyRunning, ExecutorError, ProcessFinishedWithError

from devtools.lifeline import tied

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAM_VARIABLE = "MYSQLPOOL_SERVER_PROGRAM"
URL_VARIABLE = "MYSQLPOOL_SERVER_URL"
START_SECONDS = 60
PACKAGES = "apt-get install mariadb-server-core mariadb-client"

# Sized for a test machine: little memory, and no waiting for a disk at commit.
COMMON_OPTIONS = (
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-buffer-pool-size=64M",
    "--innodb-flush-log-at-trx-commit=0",
    # A client on a busy machine may need longer than the default of 10 s to answer the greeting; the server hangs up then.
    "--connect-timeout=120",
)
MARIADB_OPTIONS = ("--performance-schema=OFF", "--innodb-log-file-size=16M")
MYSQL_OPTIONS = ("--mysqlx=OFF", "--innodb-redo-log-capacity=64M")


# The statements of a time zone script that any server understands, whoever's tool wrote it.
ZONE_STATEMENT = re.compile(r"^(?:TRUNCATE|INSERT|SET @time_zone_id)\b.*?;$", re.DOTALL | re.MULTILINE)

# At its end a process that has imported mirakuru kills whatever mirakuru has started, for whomever, with the process' id
# anywhere in a name that is partly random: 1234 in 12345:..., too. So one test run might kill another's server. What is
# started here is tied to whom it is for, and needs no such end.
atexit.unregister(cleanup_subprocesses)


class ServerError(Exception):
    """A message for a person: what is wrong with the server, and what to do about it."""


class Server:
    """What is observed of any server: where it is, who may log in, what it is."""

    host: str
    port: int
    user: str
    password: str
    version: str
    is_mariadb: bool

    def settings(self, name: str, **options: Any) -> dict[str, Any]:
        """An entry of Django's ``DATABASES`` without its ENGINE; ``options`` become OPTIONS."""
        return {
            "NAME": name,
            "HOST": self.host,
            "PORT": self.port,
            "USER": self.user,
            "PASSWORD": self.password,
            "OPTIONS": options,
        }

    def connect(self, **arguments: Any) -> MySQLdb.Connection:
        """A connection that no pool knows of, to look at the server from outside."""
        address = {"host": self.host, "port": self.port}
        login = {"user": self.user, "password": self.password, "autocommit": True}
        return MySQLdb.connect(**{**address, **login, **arguments})

    def start(self) -> None:
        """Make it answer."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing of it that wasn't there before."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ExistingServer(Server):
    """A server that somebody else runs: it can be looked at, and not stopped."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"mysql", "mariadb"} or not parts.hostname:
            raise ServerError(f"{URL_VARIABLE} must look like mysql://user:password@host:port")
        self.host = parts.hostname
        self.port = parts.port or 3306
        self.user = unquote(parts.username or "root")
        self.password = unquote(parts.password or "")

    @cached_property
    def version(self) -> str:  # type: ignore[override]
        """As the server says it, without what its packager added."""
        return self._full_version.split("-")[0]

    @cached_property
    def is_mariadb(self) -> bool:  # type: ignore[override]
        """Whether it is MariaDB rather than MySQL."""
        return "mariadb" in self._full_version.lower()

    @cached_property
    def _full_version(self) -> str:
        connection = self.connect()
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT VERSION()")
            return str(cursor.fetchone()[0])
        finally:
            connection.close()

    def start(self) -> None:
        """See that it answers, so that the complaint comes at once and in one line."""
        try:
            self.connect().close()
        except MySQLdb.Error as error:
            raise ServerError(f"{URL_VARIABLE}: {self.host}:{self.port}: {error}") from error

    def close(self) -> None:
        """It stays as it is."""

    def stop(self) -> None:
        """Refuse."""
        raise ServerError(f"the server of {URL_VARIABLE} isn't ours to stop")

    kill = restart = stop


class _Executor(TCPExecutor):
    """mirakuru's, without what would let a fork of this process end the server as it exits."""

    def __del__(self) -> None:
        """Kill nothing: ``PrivateServer`` and the lifeline see to the end."""


class PrivateServer(Server):
    """A MariaDB or MySQL server in its own folder, on a free port, which ends with this process.

    ``stop()``, ``kill()`` and ``restart()`` keep its data and its port for the next ``start()``.
    ``close()``, leaving the ``with`` block, and the end of this process (by whatever means) remove
    the folder, unless one was given: that one is kept, and a server started in it later finds its
    data.
    """

    host = "127.0.0.1"
    user = "mysqlpool"

    def __init__(
        self,
        program: str | None = None,
        folder: Path | None = None,
        options: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.program = _find_program(program or os.environ.get(PROGRAM_VARIABLE))
        self.version, self.is_mariadb = _identify(self.program)
        self.options = tuple(options)
        self.port = port or port_for.select_random()
        #: Until its first start: somebody else may take a port that was free when it was chosen.
        self._may_choose_port = port is None
        self.password = secrets.token_urlsafe(12)
        self._kept_folder = folder.resolve() if folder else None
        self._process: _Executor | None = None

    @cached_property
    def folder(self) -> Path:
        """Where all of the server is. Only its owner may enter: the socket lets root in unasked."""
        if self._kept_folder:
            self._kept_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._kept_folder
        return Path(tempfile.mkdtemp(prefix="mysqlpool-"))

    @property
    def socket(self) -> str:
        """The path of its Unix socket, through which ``root`` needs no password."""
        return str(self.folder / "server.sock")

    @property
    def log(self) -> Path:
        """What the server says, from its first start on."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None or self._process.process is None:
            raise ServerError("the server isn't running")
        return self._process.process.pid

    def start(self) -> None:
        """Start it, where it isn't running; returns when it answers."""
        if self._process and self._process.running():
            return
        atexit.register(self._close_at_exit, os.getpid())
        data = self._initialised_data()
        with self.log.open("a") as log:
            self._process = self._executor(data, log)
            try:
                while not self._has_started():
                    self.port = port_for.select_random()
                    self._process = self._executor(data, log)
            except ExecutorError as error:
                what = f"{self.program} didn't start on port {self.port} ({type(error).__name__})"
                raise ServerError(f"{what}:\n{tail(self.log)}") from error

    def _has_started(self) -> bool:
        """Start the process; ``False`` if somebody else has taken its port, and it may have another one."""
        assert self._process is not None
        try:
            self._process.start()
        except AlreadyRunning:
            if not self._may_choose_port:
                raise
            return False
        self._may_choose_port = False
        return True

    def stop(self) -> None:
        """Stop it as an administrator does; returns when it has ended."""
        if self._process:
            try:
                self._process.stop()
            except ProcessFinishedWithError:
                raise ServerError(f"{self.program} didn't end well:\n{tail(self.log)}") from None

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process:
            self._process.kill()

    def restart(self) -> None:
        """Stop it and start it, same data, same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it, and remove its folder unless that was given."""
        atexit.unregister(self._close_at_exit)
        try:
            self.stop()
        finally:
            if not self._kept_folder and "folder" in self.__dict__:
                shutil.rmtree(self.folder, ignore_errors=True)
                del self.folder

    def load_time_zones(self) -> None:
        """Fill the time zone tables, which Django's date functions need (a second or two)."""
        names = ("mariadb-tzinfo-to-sql", "mysql_tzinfo_to_sql")
        loader = _find(names[:: 1 if self.is_mariadb else -1], _folders_near(self.program))
        if not loader:
            raise ServerError(f"neither of {', '.join(names)} was found: {PACKAGES}")
        command = [loader, "/usr/share/zoneinfo"]
        zones = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        root = {"user": "root", "password": "", "host": "localhost", "unix_socket": self.socket}
        connection = self.connect(**root, database="mysql", autocommit=False)
        _run_script(connection, "\n".join(ZONE_STATEMENT.findall(zones)))

    def _executor(self, data: Path, log: IO[str]) -> _Executor:
        command = [
            *(self.program, "--no-defaults", f"--datadir={data}", f"--socket={self.socket}"),
            *(f"--port={self.port}", f"--pid-file={self.folder / 'server.pid'}"),
            *(f"--init-file={self._write_login()}", *self._options(), *self.options),
        ]
        return _Executor(
            tied(command, remove=None if self._kept_folder else self.folder),
            host=self.host,
            port=self.port,
            timeout=START_SECONDS,
            expected_returncode=0,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _options(self) -> list[str]:
        """Options of the server, and of the one that makes its data folder."""
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        own_options = MARIADB_OPTIONS if self.is_mariadb else MYSQL_OPTIONS
        # A MariaDB that starts removes the temporary tables that it finds here. In /tmp they may be a neighbour's,
        # and one that is just making its data folder then fails: "Unknown table 'mysql.tmp_user_sys'".
        temporary = self.folder / "tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        return [*COMMON_OPTIONS, *own_options, *as_root, f"--tmpdir={temporary}"]

    def _write_login(self) -> Path:
        """What the server runs before it answers: it lets this object in, and root by no port."""
        login = f"'{self.user}'@'%' IDENTIFIED BY '{self.password}'"
        script = self.folder / "login.sql"
        script.touch(mode=0o600)
        script.write_text(
            "DROP USER IF EXISTS 'root'@'127.0.0.1', 'root'@'::1';\n"
            f"CREATE USER IF NOT EXISTS {login};\n"
            f"ALTER USER {login};\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;\n"
        )
        return script

    def _initialised_data(self) -> Path:
        """The data folder; made under another name first, so that a half-made one is never used."""
        data, unfinished = self.folder / "data", self.folder / "data.unfinished"
        if data.exists():
            return data
        shutil.rmtree(unfinished, ignore_errors=True)
        with self.log.open("a") as log:
            command = self._initialise_command(unfinished)
            if subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise ServerError(f"{command[0]} could make no data folder:\n{tail(self.log)}")
        return unfinished.rename(data)

    def _initialise_command(self, data: Path) -> list[str]:
        if not self.is_mariadb:
            command = [self.program, "--no-defaults", "--initialize-insecure"]
            return [*command, f"--datadir={data}", *self._options()]
        installer = _find(("mariadb-install-db", "mysql_install_db"), _folders_near(self.program))
        if not installer:
            raise ServerError(f"mariadb-install-db was not found: {PACKAGES}")
        how = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        return [installer, "--no-defaults", f"--datadir={data}", *how, *self._options()]

    def _close_at_exit(self, owner: int) -> None:
        """A fork of this process that ends must leave its parent's server alone."""
        if os.getpid() == owner:
            self.close()


def server_from_environment(**arguments: Any) -> PrivateServer | ExistingServer:
    """The server that the environment names, or else a private one made with ``arguments``."""
    url = os.environ.get(URL_VARIABLE)
    return ExistingServer(url) if url else PrivateServer(**arguments)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    with path.open(errors="replace") as file:
        return "".join(deque(file, lines)).rstrip()


def _find(names: Sequence[str], folders: Sequence[str | Path]) -> str | None:
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found: Iterator[str | None] = (shutil.which(name, path=path) for name in names)
    return next(filter(None, found), None)


def _folders_near(program: str) -> list[Path]:
    """Where a server's companions are: packages use bin or sbin, archives bin or scripts."""
    home = Path(program).resolve().parent
    return [home, home.parent / "bin", home.parent / "scripts"]


def _find_program(wanted: str | None) -> str:
    names = (wanted,) if wanted else ("mariadbd", "mysqld")
    program = _find(names, ("/usr/sbin", "/usr/local/sbin"))
    if not program:
        raise ServerError(
            f"no {' or '.join(names)} was found: {PACKAGES}, or name the program of a server: "
            f"{PROGRAM_VARIABLE}=/path/to/mysqld"
        )
    return program


def _identify(program: str) -> tuple[str, bool]:
    answer = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    version = re.search(r"Ver (\d+(?:\.\d+)+)", answer.stdout)
    if not version:
        raise ServerError(f"{program} --version says no version: {answer.stdout}{answer.stderr}")
    return version[1], "MariaDB" in answer.stdout


def _run_script(connection: MySQLdb.Connection, script: str) -> None:
    try:
        connection.query(script)
        while connection.next_result() == 0:
            connection.store_result()
        connection.commit()
    finally:
        connection.close()
