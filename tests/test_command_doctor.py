"""``manage.py mysqlpool doctor``: what it finds out, what it says of it, and how it ends."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import port_for
import pytest

from django_mysqlpool.management.commands import mysqlpool
from django_mysqlpool.monitoring.doctor import diagnosis, findings
from tests import DRIVER
from tests.commands import run, run_here
from tests.helpers import DATABASE, eventually, mysqlclient_only, numbers

pytestmark = [pytest.mark.django, pytest.mark.driver, pytest.mark.server]

PASSWORD = "s3cret-of-a-test"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def entry(server, observer):
    """Makes an entry of DATABASES for an account of its own."""
    users = []

    def make(
        limits: str = "", grants: str = "ALL ON *.*", pool: Any = True, options: Any = None, **more: Any
    ) -> dict[str, Any]:
        user = f"doctor_{next(numbers)}"
        observer.query(f"CREATE USER '{user}'@'%%' IDENTIFIED BY '{PASSWORD}' {limits}")
        users.append(user)
        observer.query(f"GRANT {grants} TO '{user}'@'%%'")
        settings = server.settings(DATABASE, pool=pool, **(options or {}))
        return {**settings, "USER": user, "PASSWORD": PASSWORD, **more}

    yield make
    for user in users:
        observer.query(f"DROP USER '{user}'@'%%'")


def report(*arguments: str, **how: Any) -> tuple[dict[str, Any], int]:
    """What the doctor says to machines, and its exit code."""
    done = run_here("doctor", "--json", *arguments, **how)
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    return json.loads(done.stdout), done.returncode


def of_alias(said: dict[str, Any], alias: str) -> dict[str, Any]:
    (found,) = (one for one in said["aliases"] if one["facts"]["alias"] == alias)
    return found


def ids(found: dict[str, Any]) -> set[str]:
    return {finding["id"] for finding in found["findings"]}


class TestWhatItFindsOut:
    def test_the_server_and_the_times(self, server, observer, entry):
        said, _ = report("--database=one", databases={"one": entry()})
        facts = of_alias(said, "one")["facts"]
        assert facts["problem"] is None
        assert facts["address"] == f"{server.host}:{server.port}"
        ((version, host, most),) = observer.query("SELECT VERSION(), @@hostname, @@max_connections")
        assert version in facts["server"]["version"]
        assert facts["server"]["is_mariadb"] is server.is_mariadb
        assert (facts["server"]["host"], facts["server"]["max_connections"]) == (host, most)
        assert facts["server"]["wait_timeout"] == 28800
        for seconds in facts["times"].values():
            assert 0 < seconds < 5
        assert facts["times"]["round_trip"] < facts["times"]["connect"]

    def test_the_pool(self, entry):
        entry = entry(pool={"pool_size": 3, "max_overflow": 1, "recycle": 60})
        said, _ = report("--database=one", databases={"one": entry})
        pool = of_alias(said, "one")["facts"]["pool"]
        assert pool["name"] == f"{entry['USER']}@{entry['HOST']}:{entry['PORT']}/{DATABASE}"
        assert (pool["pool_class"], pool["size"], pool["cap"], pool["recycle"]) == ("QueuePool", 3, 4, 60)

    def test_the_accounts_limits(self, entry):
        limited = entry("WITH MAX_USER_CONNECTIONS 4 MAX_QUERIES_PER_HOUR 1000", "SELECT ON mysql.db")
        limited["NAME"] = ""
        said, _ = report("--database=one", "--database=two", databases={"one": limited, "two": entry()})
        account = of_alias(said, "one")["facts"]["account"]
        assert account["name"] == f"{limited['USER']}@%"
        assert account["max_connections"] == 4
        assert account["hourly_limits"] == {"MAX_QUERIES_PER_HOUR": 1000}
        assert "hourly-limits" in ids(of_alias(said, "one"))
        other = of_alias(said, "two")["facts"]["account"]
        assert (other["max_connections"], other["hourly_limits"]) == (None, {})

    def test_an_account_that_has_room_for_one_connection(self, entry):
        said, code = report("--database=one", databases={"one": entry("WITH MAX_USER_CONNECTIONS 1")})
        assert code == 1
        facts = of_alias(said, "one")["facts"]
        assert facts["problem"] is None
        assert facts["account"]["max_connections"] == 1

    def test_who_uses_connections(self, server, entry):
        """Without the privilege PROCESS an account sees its own only."""
        own, others = entry("", "SELECT ON mysql.db"), entry("", "PROCESS ON *.*")
        own["NAME"] = others["NAME"] = ""
        with server.connect(user=own["USER"], password=PASSWORD), server.connect(user=own["USER"], password=PASSWORD):
            said, _ = report("--database=one", "--database=two", databases={"one": own, "two": others})
        seen = {user["user"]: user["connections"] for user in of_alias(said, "one")["facts"]["users"]}
        assert seen == {own["USER"]: 3}
        assert not of_alias(said, "one")["facts"]["account"]["sees_others"]
        assert "no-process-privilege" in ids(of_alias(said, "one"))
        seen = {user["user"]: user["connections"] for user in of_alias(said, "two")["facts"]["users"]}
        assert seen[own["USER"]] >= 2
        assert seen[others["USER"]] == 1
        assert of_alias(said, "two")["facts"]["account"]["sees_others"]
        assert "no-process-privilege" not in ids(of_alias(said, "two"))

    @mysqlclient_only("on what its client library does with ssl_mode")
    def test_tls(self, entry):
        """MariaDB's client library connects in clear text to a server without TLS, whatever ssl_mode says."""
        databases = {
            "clear": entry(options={"ssl_mode": "DISABLED"}),
            "required": entry(options={"ssl_mode": "REQUIRED"}),
        }
        said, _ = report(*(f"--database={alias}" for alias in databases), databases=databases)
        clear, required = (of_alias(said, alias) for alias in databases)
        assert clear["facts"]["tls"] == {"version": None, "cipher": None, "is_asked_for": False}
        assert "tls-not-used" not in ids(clear)
        assert "no-tls" not in ids(clear), "it is this machine"
        tls = required["facts"]["tls"]
        assert tls["is_asked_for"]
        if required["facts"]["problem"] is None:
            assert ("tls-not-used" in ids(required)) is (tls["cipher"] is None)
            assert (tls["version"] is None) is (tls["cipher"] is None)

    def test_a_pool_class_and_an_option_file(self, server, entry, tmp_path):
        """A connection whose parameters are in a file can't be reset."""
        option_file = tmp_path / "my.cnf"
        option_file.write_text("[client]\n")
        given = entry(pool={"pool_class": "NullPool"}, options={"read_default_file": str(option_file)})
        said, _ = report("--database=one", databases={"one": given})
        facts = of_alias(said, "one")["facts"]
        assert facts["problem"] is None
        assert facts["pool"]["pool_class"] == "NullPool"
        assert facts["pool"]["cap"] is None
        assert facts["times"]["reset"] is None
        assert "no-cap" in ids(of_alias(said, "one"))

    def test_it_leaves_no_connection(self, observer, entry):
        given = entry()
        report("--database=one", databases={"one": given})
        eventually(lambda: observer.connections_of(given["USER"]), lambda found: not found)


class TestAConnectionThatFails:
    def problem(self, **databases: Any) -> tuple[dict[str, Any], int]:
        said, code = report("--database=one", databases={"one": databases.pop("one"), **databases})
        found = of_alias(said, "one")
        assert ids(found) == {"cannot-connect"}
        assert not said["can_connect"]
        return found["facts"]["problem"], code

    def test_a_wrong_password(self, entry):
        problem, code = self.problem(one={**entry(), "PASSWORD": f"not-{PASSWORD[:3]}"})
        assert "the password is wrong" in problem["what"]
        assert "1045" in problem["error"]
        assert "Correct USER and PASSWORD" in problem["change"]
        assert code == 2

    def test_a_database_that_is_not_there(self, entry):
        problem, _ = self.problem(one=entry(NAME="no_such_database"))
        assert problem["what"] == "The server has no such database."

    def test_a_database_of_somebody_elses(self, entry):
        problem, _ = self.problem(one=entry(grants="SELECT ON mysql.db"))
        assert "no right to use the database" in problem["what"]

    def test_nothing_at_the_port(self, entry):
        problem, _ = self.problem(one=entry(PORT=port_for.select_random()))
        assert "Nothing answers" in problem["what"]

    def test_a_name_that_is_none(self, entry):
        problem, _ = self.problem(one=entry(HOST="no-such-host.invalid"))
        assert "Nothing answers" in problem["what"] or "not known" in problem["what"]

    def test_an_account_at_its_limit(self, server, entry):
        limited = entry("WITH MAX_USER_CONNECTIONS 1")
        with server.connect(user=limited["USER"], password=PASSWORD):
            problem, code = self.problem(one=limited)
        assert "limits" in problem["what"]
        assert "max_user_connections" in problem["error"]
        assert code == 2

    def test_an_option_that_the_driver_does_not_know(self, entry):
        problem, _ = self.problem(one=entry(options={"pool_sise": 3}))
        assert problem["what"] == "The driver does not know an option."
        assert "pool_sise" in problem["error"]

    def test_a_wrong_option_of_the_pool(self, entry):
        problem, _ = self.problem(one=entry(pool={"pool_siz": 3}))
        assert problem["what"] == "The settings of the alias are wrong."
        assert "'pool_siz'" in problem["error"]

    def test_the_others_are_examined_all_the_same(self, entry):
        databases = {"bad": entry(pool={"pool_siz": 3}), "gone": entry(NAME="no_such_database"), "good": entry()}
        said, code = report(databases=databases)
        problems = {one["facts"]["alias"]: one["facts"]["problem"] for one in said["aliases"]}
        assert set(problems) == {"default", *databases}
        assert problems["good"] is problems["default"] is None
        assert problems["bad"]
        assert problems["gone"]
        assert code == 2


class TestTheSize:
    def test_workers_and_threads_that_are_given(self, entry):
        databases = {"one": entry("WITH MAX_USER_CONNECTIONS 20", pool={"pool_size": 8, "max_overflow": 0})}
        said, code = report("--database=one", "--workers=4", "--threads=8", databases=databases)
        assert said["crew"] == {"workers": 4, "threads": 8, "hosts": 1, "source": "given"}
        found = of_alias(said, "one")
        assert "cap-over-account" in ids(found)
        assert (found["proposal"]["pool_size"], found["proposal"]["total"]) == (5, 20)
        assert code == 1

    def test_those_of_the_environment(self, entry):
        how = {"GUNICORN_CMD_ARGS": "--workers 3 --threads 4"}
        said, _ = report("--database=one", databases={"one": entry()}, **how)
        assert said["crew"] == {"workers": 3, "threads": 4, "hosts": 1, "source": "GUNICORN_CMD_ARGS"}
        assert of_alias(said, "one")["proposal"]["pool_size"] == 4
        said, _ = report("--database=one", "--workers=5", "--hosts=2", databases={"one": entry()}, **how)
        assert said["crew"] == {"workers": 5, "threads": 4, "hosts": 2, "source": "given and GUNICORN_CMD_ARGS"}

    def test_none(self, entry):
        said, _ = report("--database=one", databases={"one": entry()})
        assert of_alias(said, "one")["proposal"] is None
        assert "workers-unknown" in ids(of_alias(said, "one"))


class TestTheServer:
    def test_one_that_takes_no_writes(self, observer, entry):
        given = entry()
        observer.query("SET GLOBAL read_only = 1")
        try:
            said, _ = report("--database=one", databases={"one": given})
        finally:
            observer.query("SET GLOBAL read_only = 0")
        assert of_alias(said, "one")["facts"]["server"]["is_read_only"]
        assert "read-only" in ids(of_alias(said, "one"))
        said, _ = report("--database=one", databases={"one": given})
        assert "read-only" not in ids(of_alias(said, "one"))

    def test_one_that_is_full_or_was(self, observer, server, entry):
        given = entry()
        ((before,),) = observer.query("SELECT @@max_connections")
        observer.query("SET GLOBAL max_connections = 10")
        try:
            with ExitStack() as stack:
                while int(observer.query("SHOW STATUS LIKE 'Threads_connected'")[0][1]) < 9:
                    stack.enter_context(server.connect())
                said, _ = report("--database=one", databases={"one": given})
        finally:
            observer.query(f"SET GLOBAL max_connections = {before}")
            observer.query("FLUSH STATUS")
        found = of_alias(said, "one")
        assert (found["facts"]["server"]["max_connections"], found["facts"]["server"]["connections"]) == (10, 10)
        assert {"nearly-full", "was-full"} <= ids(found)


class TestTheSettings:
    def test_the_systems_checks_are_told(self, entry):
        said, _ = report("--database=one", databases={"one": entry()})
        assert "django_mysqlpool.W004" in {finding["id"] for finding in said["findings"]}

    def test_a_life_that_is_longer_than_the_servers(self, observer, entry):
        said, _ = report("--database=one", databases={"one": entry(pool={"recycle": 28801})})
        assert "recycle-over-wait-timeout" in ids(of_alias(said, "one"))
        brief = {"init_command": "SET SESSION wait_timeout = 30"}
        said, _ = report("--database=one", databases={"one": entry(options=brief)})
        assert "short-wait-timeout" in ids(of_alias(said, "one"))

    def test_a_folder_that_is_not_there(self, entry, tmp_path):
        said, code = report("--database=one", databases={"one": entry()}, folder=tmp_path / "missing")
        assert "status-folder" in {finding["id"] for finding in said["findings"]}
        assert code == 1


class TestHowItEnds:
    def fine(self, entry) -> dict[str, Any]:
        """An alias of which there is nothing to say, in place of the tests' own."""
        given = entry(
            "WITH MAX_USER_CONNECTIONS 20",
            pool={"pool_size": 4, "max_overflow": 0},
            options={"read_timeout": 60, "write_timeout": 30},
        )
        return {"default": given}

    def test_well(self, entry):
        done = run("doctor", "--workers=2", "--threads=4", databases=self.fine(entry))
        assert done.returncode == 0, done.stdout
        assert "warning" not in done.stdout

    def test_with_a_warning(self, entry):
        databases = self.fine(entry)
        assert run("doctor", "--workers=9", "--threads=4", databases=databases).returncode == 1
        assert run("doctor", "--workers=9", "--threads=4", "--fail-level=error", databases=databases).returncode == 0
        assert run("doctor", "--workers=2", "--threads=3", databases=databases).returncode == 0
        assert run("doctor", "--workers=2", "--threads=3", "--fail-level=info", databases=databases).returncode == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--database=nowhere"], "DATABASES has no alias 'nowhere'."),
            (["--workers=0"], "invalid number of 1 or more value: '0'"),
            (["--fail-level=fatal"], "invalid choice: 'fatal'"),
        ],
    )
    def test_with_a_mistake_of_its_user(self, arguments, said):
        done = run("doctor", *arguments)
        assert done.returncode == 2
        assert said in done.stderr

    def test_with_an_alias_that_is_not_pooled(self, entry):
        done = run_here("doctor", "--database=plain", databases={"plain": entry(pool=False)})
        assert done.stderr == "The database alias 'plain' is not pooled."
        assert done.returncode == 2

    def test_without_a_pool(self, server):
        stock = {**server.settings(DATABASE), "ENGINE": "django.db.backends.mysql"}
        done = run("doctor", databases={"default": stock})
        assert done.returncode == 2
        assert "No database alias is pooled." in done.stderr


@contextmanager
def without_rich(folder: Path):
    (folder / "rich").mkdir()
    (folder / "rich" / "__init__.py").write_text("raise ImportError('as if it were not installed')")
    yield {"PYTHONPATH": f"{folder}:{ROOT}"}


class TestThePage:
    """``docs/operation.md``."""

    page = (ROOT / "docs" / "operation.md").read_text()

    def test_each_finding_has_a_row_with_its_level(self):
        rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (\w+) \|", self.page, re.MULTILINE)
        explained = {number: level for numbers, level in rows for number in re.findall(r"`([a-z-]+)`", numbers)}
        made = {}
        for module in (findings, diagnosis, mysqlpool):
            source = inspect.getsource(module)
            made |= {number: level for level, number in re.findall(r'Finding\(\s*"(\w+)",\s*"([a-z-]+)"', source)}
        room = {"cap-over-server": "warning", "cap-over-account": "warning"}  # one place makes both
        assert explained == {**made, **room}

    def test_each_option_is_there(self):
        parser = mysqlpool.Command().create_parser("manage.py", "mysqlpool")
        (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        for name, subparser in subparsers.choices.items():
            assert f"mysqlpool {name}" in self.page
            for action in subparser._actions:
                for option in action.option_strings:
                    if action.help != argparse.SUPPRESS and option not in {"-h", "--help"}:
                        assert f"`{option}" in self.page or f" {option}" in self.page, option


class TestTheView:
    def shown(self, *arguments: str, **how: Any) -> str:
        done = run("doctor", "--database=one", *arguments, **how)
        assert done.stderr == ""
        assert PASSWORD not in done.stdout
        return done.stdout

    def test_it_is_plain_text_in_a_pipe(self, server, entry):
        shown = self.shown("--workers=2", "--threads=8", databases={"one": entry()})
        assert "\x1b" not in shown
        assert re.search(r"^  round trip +\d+\.\d\d ms$", shown, re.MULTILINE)
        assert re.search(rf"^  server +{'MariaDB' if server.is_mariadb else 'MySQL'} \d+", shown, re.MULTILINE)
        assert "  warning: " in shown
        assert '  proposal: "pool": {"pool_size": 8, "max_overflow": 0}, at most 16 connections in all' in shown

    def test_it_is_coloured_on_a_terminal(self, entry):
        pytest.importorskip("rich")
        shown = self.shown("--force-color", databases={"one": entry()}, COLUMNS="120", TERM="xterm")
        assert "\x1b[33mwarning: " in shown

    def test_it_needs_no_rich(self, entry, tmp_path):
        with without_rich(tmp_path) as environment:
            shown = self.shown("--force-color", databases={"one": entry()}, **environment)
        assert "\x1b" not in shown
        assert "  warning: " in shown

    def test_it_takes_djangos_options_after_the_subcommand(self, entry):
        shown = self.shown("--no-color", "--settings=tests.command_settings", "-v2", databases={"one": entry()})
        assert "round trip" in shown

    def test_a_failure_is_told_in_plain_words(self, entry):
        shown = self.shown(databases={"one": entry(NAME="no_such_database")})
        assert "  connects  no\n" in shown
        assert "  error: The server has no such database.\n    Create it, or correct NAME.\n" in shown


@pytest.mark.skipif(DRIVER != "mysqlclient", reason="once is enough")
def test_it_is_there_if_the_application_is_installed():
    """docs/operation.md says so."""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-m", "django", "mysqlpool", "doctor"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Unknown command: 'mysqlpool'" in done.stderr
