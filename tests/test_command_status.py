"""The files that processes write, and ``manage.py mysqlpool status`` and ``drain``, which read them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from django_mysqlpool.monitoring.process_files import SILENT_AFTER, replace
from tests.commands import PooledProcess, environment, run, run_here, start
from tests.helpers import DATABASE, eventually, holds

pytestmark = [pytest.mark.python, pytest.mark.django]

#: Seconds that a process may take to write its file, which it does every second.
SOON = 20


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where processes write."""
    (tmp_path / "status").mkdir(mode=0o700)
    return tmp_path / "status"


@pytest.fixture
def start_process(folder, observer):
    """Starts processes with a pool of an account of its own."""
    started = []

    def begin(folder: Any = folder, pool: Any = None, **databases: Any) -> PooledProcess:
        started.append(PooledProcess(databases, folder))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


@pytest.fixture
def two(start_process) -> tuple[PooledProcess, PooledProcess]:
    return start_process(), start_process()


def status(folder: Path, *arguments: str) -> dict[int, dict[str, Any]]:
    """The processes that ``status --json`` tells of, by their ids."""
    done = run_here("status", "--json", *arguments, folder=folder)
    assert done.stderr == ""
    return {process["pid"]: process for process in json.loads(done.stdout)["processes"]}


def pool_of(process: dict[str, Any]) -> dict[str, Any]:
    (pool,) = process["pools"].values()
    return pool


def file_of(folder: Path, pid: int) -> Path:
    return folder / f"mysqlpool-{pid}.json"


def suffixes_in(folder: Path) -> set[str]:
    """The kinds of files there, but for one that a process is just writing."""
    return {path.suffix for path in folder.iterdir() if not path.name.startswith(".")}


def written(folder: Path, pid: int, is_so: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    """The content of a process' file, when it is as it is to be."""

    def look() -> dict[str, Any] | None:
        try:
            return json.loads(file_of(folder, pid).read_text())
        except FileNotFoundError:
            return None

    return eventually(look, lambda found: found is not None and is_so(found), SOON)


class TestTheFiles:
    @holds
    def test_a_process_writes_what_its_pool_does(self, folder, start_process):
        process = start_process()
        process("ask()")
        found = written(folder, process.pid, lambda content: pool_of(content)["out"] == 1)
        pool = pool_of(found)
        assert (pool["aliases"], pool["open"], pool["idle"], pool["waiting"]) == (["default"], 1, 0, 0)
        process("give_back()")
        pool = pool_of(written(folder, process.pid, lambda content: pool_of(content)["idle"] == 1))
        assert (pool["open"], pool["out"]) == (1, 0)

    def test_only_its_user_may_read_it(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        assert stat.S_IMODE(file_of(folder, process.pid).stat().st_mode) == 0o600

    def test_it_holds_no_password_and_no_argument(self, folder, start_process, server):
        process = start_process()
        process("sys.argv.append('--token=s3cret')")
        process("ask()")
        written(folder, process.pid)
        text = file_of(folder, process.pid).read_text()
        assert server.password not in text
        assert "s3cret" not in text

    def test_the_last_version_says_that_nothing_is_open(self, folder, start_process):
        process = start_process()
        process("ask()")
        process("give_back()")
        process("__import__('django_mysqlpool').close_pool()")
        written(folder, process.pid, lambda content: pool_of(content)["open"] == 0)

    def test_it_is_gone_at_the_end(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        assert process.end() == ""
        assert list(folder.iterdir()) == []

    def test_a_forked_child_has_its_own(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        child = process("fork()")
        try:
            assert written(folder, child)["pid"] == child
            process("ask()")  # a parent without other threads writes again with its next checkout
            assert set(status(folder)) == {process.pid, child}
        finally:
            os.kill(child, signal.SIGKILL)
        process(f"os.waitpid({child}, 0)")
        assert set(status(folder)) == {process.pid}
        assert not file_of(folder, child).exists()

    def test_a_process_that_starts_removes_what_others_have_left(self, folder, start_process):
        killed, child = start_process(), start_process()
        killed("ask()")
        written(folder, killed.pid)
        killed.kill()
        (folder / f".mysqlpool-{killed.pid}-abc").write_text("half")
        (folder / f"mysqlpool-{killed.pid}.request").write_text("{}")
        (folder / "notes.txt").write_text("of somebody else's")
        child("ask()")
        written(folder, child.pid)
        is_being_written = f".mysqlpool-{child.pid}-"
        found = {path.name for path in folder.iterdir() if not path.name.startswith(is_being_written)}
        assert found == {f"mysqlpool-{child.pid}.json", "notes.txt"}

    def test_a_file_of_an_earlier_process_of_that_number_does_not_count(self, folder):
        content = {"start": 1, "program": "x", "monotonic": 0.0, "pools": {}, "is_resting": False, "answer": None}
        file_of(folder, os.getpid()).write_text(json.dumps(content))
        assert status(folder) == {}
        assert list(folder.iterdir()) == []

    def test_what_is_no_such_file_does_no_harm(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        for number, text in enumerate(("", "[]", "{}", '{"pid": 1}', "not JSON")):
            file_of(folder, number + 1).write_text(text)
        assert set(status(folder)) == {process.pid}

    def test_a_web_server_that_loads_the_site_before_it_forks(self, folder, serve):
        site = serve(
            "gunicorn preload",
            DJANGO_SETTINGS_MODULE="tests.command_settings",
            MYSQLPOOL_TEST_STATUS_FOLDER=json.dumps(str(folder)),
            WEB_CONCURRENCY="3",
        )
        (master,) = re.findall(r"Listening at: .*\((\d+)\)", site.log.read_text())

        def look() -> dict[int, dict[str, Any]]:
            with ThreadPoolExecutor(20) as executor:  # no connection is kept: each would stay with one worker
                list(executor.map(httpx.get, [f"http://127.0.0.1:{site.port}/slow/"] * 60))
            return status(folder)

        eventually(look, lambda found: len(found) == 3, 60)
        found = status(folder)
        assert int(master) not in found
        assert {process["program"] for process in found.values()} == {"gunicorn"}
        site.process.stop()
        assert list(folder.iterdir()) == []


class TestTheSetting:
    """It is looked at when the process starts."""

    def start(self, value: Any) -> subprocess.CompletedProcess[str]:
        script = "import django, sys; django.setup(); print('django_mysqlpool.monitoring' in sys.modules)"
        return subprocess.run(
            [sys.executable, "-c", script], env=environment({}, value), capture_output=True, text=True, timeout=60
        )

    def test_nothing_is_imported_without_it(self):
        done = self.start(None)
        assert done.stdout == "False\n"

    @pytest.mark.parametrize("value", ["run/shop", "", 5, True])
    def test_it_is_an_absolute_path(self, value):
        done = self.start(value)
        assert f"MYSQLPOOL_STATUS_FOLDER is {value!r}; it must be the absolute path of a folder" in done.stderr
        assert done.returncode == 1

    def test_it_is_a_folder(self, tmp_path):
        (tmp_path / "file").touch()
        assert "which is not a folder" in self.start(tmp_path / "file").stderr

    def test_it_is_not_everybodys(self, folder):
        folder.chmod(0o777)
        assert "which every user of the machine may write into" in self.start(folder).stderr

    def test_a_process_starts_without_the_folder_and_says_so(self, tmp_path):
        done = self.start(tmp_path / "missing")
        assert done.returncode == 0
        assert "there is no such folder. This process' pools will not be seen there." in done.stderr

    def test_a_folder_that_goes_is_told_once(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        file_of(folder, process.pid).unlink()
        folder.rmdir()
        process("count_rounds()")
        eventually(lambda: process("len(rounds)"), lambda number: number >= 6)
        folder.mkdir(mode=0o700)
        written(folder, process.pid)
        assert process.end().count("The status of this process can't be written into") == 1


class TestStatus:
    @holds
    def test_all_processes(self, folder, two):
        one, other = two
        one("ask()")
        other("ask()")
        other("give_back()")
        written(folder, one.pid, lambda content: pool_of(content)["out"] == 1)
        written(folder, other.pid, lambda content: pool_of(content)["idle"] == 1)
        done = run("status", folder=folder)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
        heading, pool, headers, *rows = done.stdout.partition("  longest holders")[0].splitlines()
        assert f"2 processes in {folder}" in heading
        assert pool.strip() in status(folder)[one.pid]["pools"]
        assert headers.split()[:2] == ["pid", "program"]
        cells = {row.split()[0]: row for row in rows}
        assert set(cells) == {str(one.pid), str(other.pid), "all"}
        assert re.search(r" 1 +0 +\d+ +0 +0 +0", cells[str(one.pid)])
        assert re.search(r" 0 +1 +\d+ +0 +0 +0", cells[str(other.pid)])
        assert re.search(r" 1 +1 +\d+ +0 +0 +0", cells["all"])

    def test_timeouts_the_longest_holder_and_advice(self, folder, start_process, server):
        pool = {"pool_size": 1, "max_overflow": 0, "timeout": 0.1, "release": "request"}
        process = start_process(default=server.settings(DATABASE, pool=pool))
        process("ask()")
        assert process("ask_elsewhere()") == "PoolTimeout"
        found = pool_of(written(folder, process.pid, lambda content: pool_of(content)["timeouts"] == 1))
        (holder,) = found["holders"]
        assert (holder["alias"], holder["thread"], holder["last_statement"]) == ("default", "MainThread", "SELECT")
        (advice,) = found["advice"]
        shown = run_here("status", folder=folder).stdout
        assert re.search(r" 1 +0 +1 +0 +1 +0$", shown, re.MULTILINE)
        assert re.search(rf"^ +\d+\.\d +{process.pid} +MainThread +SELECT$", shown, re.MULTILINE)
        assert f"process {process.pid}, {next(iter(status(folder)[process.pid]['pools']))}: " in shown
        (said,) = json.loads(run_here("doctor", "--database=default", "--json", folder=folder).stdout)["aliases"]
        told = [finding["what"] for finding in said["findings"] if finding["id"] == "advice"]
        assert told[0].split("; ")[0] == advice.split("; ")[0] == "0 of 1 checkouts had to wait, 1 in vain"

    def test_one_that_is_stopped_is_silent(self, folder, start_process):
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            eventually(lambda: status(folder)[process.pid]["is_silent"], bool, SOON)
            done = run_here("status", folder=folder)
            assert f"Process {process.pid} has not written for" in done.stdout
            assert done.returncode == 1
        finally:
            os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: status(folder)[process.pid]["is_silent"], lambda is_silent: not is_silent, SOON)

    def test_no_process(self, folder):
        done = run_here("status", folder=folder)
        assert "No process has written here." in done.stdout
        assert done.returncode == 1

    def test_no_folder(self, tmp_path):
        done = run("status")
        assert "The setting MYSQLPOOL_STATUS_FOLDER names no folder" in done.stderr
        assert done.returncode == 2
        done = run("status", folder=tmp_path / "missing")
        assert "MYSQLPOOL_STATUS_FOLDER can't be read" in done.stderr
        assert done.returncode == 2

    def test_what_comes_from_outside_does_not_steer_the_terminal(self, folder, start_process):
        process = start_process()
        process("ask()")
        content = written(folder, process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            pool_of(content)["holders"] = [
                {"thread": "t", "seconds": 1.5, "work": "GET /\x1b[2J\x07[red]", "last_statement": None}
            ]
            file_of(folder, process.pid).write_text(json.dumps(content))
            for arguments in ([], ["--force-color"]):
                shown = run_here("status", *arguments, folder=folder, COLUMNS="250").stdout
                assert "GET /\\x1b[2J\\x07[red]" in shown
        finally:
            os.kill(process.pid, signal.SIGCONT)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root writes files of other users")
    def test_what_root_writes_is_the_processs_own(self, folder):
        (folder / "theirs").touch()
        os.chown(folder / "theirs", 65534, 65534)
        replace(folder / "mysqlpool-1.request", {}, (folder / "theirs").stat())
        assert (folder / "mysqlpool-1.request").stat().st_uid == 65534


class TestWatching:
    @holds
    def test_lines_of_json(self, folder, start_process):
        process = start_process()
        process("ask()")
        watching = start("status", "--watch=0.1", "--json", folder=folder, stdout=subprocess.PIPE)
        try:
            for line in watching.stdout:
                found = {one["pid"]: pool_of(one) for one in json.loads(line)["processes"]}
                if found and found[process.pid]["out"] == 1:
                    break
            process("give_back()")
            for line in watching.stdout:
                if pool_of(json.loads(line)["processes"][0])["out"] == 0:
                    break
        finally:
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=30)
        assert watching.returncode == 0

    @pytest.mark.parametrize("with_rich", [True, False])
    def test_a_live_view_on_a_terminal(self, with_rich, folder, start_process, tmp_path):
        if with_rich:
            pytest.importorskip("rich")
        process = start_process()
        process("ask()")
        written(folder, process.pid)
        ours, theirs = pty.openpty()
        arguments = ["status", "--watch=0.1"] if with_rich else ["status", "--watch=0.1", "--no-color"]
        watching = start(*arguments, folder=folder, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = Reader(ours)
        try:
            shown.until(lambda text: text.count(str(process.pid)) >= 3)
        finally:
            watching.send_signal(signal.SIGINT)
            shown.until(lambda _: watching.poll() is not None)
        assert watching.returncode == 0
        assert "Traceback" not in shown.text
        assert ("\x1b[?1049h" in shown.text) is with_rich, "the terminal's other screen"
        assert ("\x1b[?1049l" in shown.text) is with_rich, "and back"


class Reader:
    """Reads what a process writes to a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def until(self, is_so: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._descriptor], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._descriptor, 65536).decode(errors="replace")
                except OSError:  # the other side has ended
                    time.sleep(0.05)


class TestDraining:
    def ids(self, *processes: PooledProcess) -> list[int]:
        found = [process("ask()") for process in processes]
        for process in processes:
            process("give_back()")
        return found

    def answers(self, done: subprocess.CompletedProcess[str]) -> dict[int, str]:
        return {answer["pid"]: answer["said"] for answer in json.loads(done.stdout)["processes"]}

    def test_all_processes_renew_their_connections(self, folder, two):
        before = self.ids(*two)
        for process in two:
            written(folder, process.pid)
        assert self.ids(*two) == before
        done = run_here("drain", "--json", folder=folder)
        assert self.answers(done) == {process.pid: "renews its connections" for process in two}
        assert done.returncode == 0
        assert not set(self.ids(*two)) & set(before)
        assert suffixes_in(folder) == {".json"}

    def test_one_process_and_one_alias(self, folder, two):
        one, _ = two
        before = self.ids(*two)
        for process in two:
            written(folder, process.pid)
        done = run("drain", str(one.pid), "--database=default", folder=folder)
        assert done.stdout == f"{one.pid} python: renews its connections\n"
        after = self.ids(*two)
        assert after[0] != before[0]
        assert after[1] == before[1]

    def test_what_goes_wrong_is_told(self, folder, start_process):
        process = start_process()
        self.ids(process)
        written(folder, process.pid)
        done = run_here("drain", "--json", "--database=nowhere", folder=folder)
        assert "ConnectionDoesNotExist" in self.answers(done)[process.pid]
        assert done.returncode == 1

    def test_a_process_with_nothing_open_has_nothing_to_renew(self, folder, start_process):
        process = start_process()
        self.ids(process)
        process("__import__('django_mysqlpool').close_pool()")
        content = written(folder, process.pid, lambda content: content["is_resting"])
        assert pool_of(content)["open"] == 0
        done = run_here("drain", "--json", folder=folder)
        assert self.answers(done) == {process.pid: "has no connection open"}
        assert done.returncode == 0
        assert suffixes_in(folder) == {".json"}

    def test_one_that_has_forked_and_does_nothing_else(self, folder, start_process):
        """It has no maintenance thread until its next checkout, and answers then."""
        process = start_process()
        (before,) = self.ids(process)
        child = process("fork()")
        try:
            content = written(folder, process.pid, lambda content: content["is_resting"])
            written(folder, child)
            content["monotonic"] -= 2 * SILENT_AFTER
            file_of(folder, process.pid).write_text(json.dumps(content))
            assert not status(folder)[process.pid]["is_silent"]
            done = run_here("drain", "--json", str(process.pid), folder=folder)
            assert self.answers(done) == {process.pid: "renews its connections after its next checkout"}
            self.ids(process)
            written(folder, process.pid, lambda content: content["answer"])
            assert self.ids(process) != [before]
        finally:
            os.kill(child, signal.SIGKILL)

    def test_one_that_does_not_answer(self, folder, two):
        one, other = two
        self.ids(*two)
        for process in two:
            written(folder, process.pid)
        os.kill(one.pid, signal.SIGSTOP)
        try:
            done = run_here("drain", "--json", "--wait=3", folder=folder)
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert self.answers(done) == {one.pid: "has not answered within 3 s", other.pid: "renews its connections"}
        assert done.returncode == 1
        assert suffixes_in(folder) == {".json"}, "it is not to happen later, when nobody waits"

    def test_an_interrupt_withdraws_the_request(self, folder, start_process):
        process = start_process()
        self.ids(process)
        written(folder, process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            draining = start("drain", folder=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            eventually(lambda: suffixes_in(folder), lambda found: ".request" in found)
            draining.send_signal(signal.SIGINT)
            draining.wait(timeout=30)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert suffixes_in(folder) == {".json"}

    def test_a_process_that_is_not_there(self, folder):
        done = run_here("drain", "1", folder=folder)
        assert f"No process 1 has written into {folder}." in done.stderr
        assert done.returncode == 2
