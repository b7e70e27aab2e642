"""``manage.py mysqlpool``: examine the aliases (doctor), look at this host's processes (status), renew connections (drain).

It ends with 0 if all is well, with 1 if something needs attention, and with 2 if it could not do its work. The page
``docs/operation.md`` says more.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import SUPPRESS, ArgumentParser
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from django_mysqlpool.monitoring import status_view
from django_mysqlpool.monitoring.doctor import view as doctor_view
from django_mysqlpool.monitoring.doctor.diagnosis import diagnose
from django_mysqlpool.monitoring.doctor.examination import pooled_aliases
from django_mysqlpool.monitoring.doctor.findings import LEVELS, Finding
from django_mysqlpool.monitoring.doctor.sizing import Crew, crew_of
from django_mysqlpool.monitoring.process_files import (
    SETTING,
    Process,
    checked_folder,
    read_processes,
    request_drain,
    withdraw,
)
from django_mysqlpool.monitoring.terminal import Element, Heading, Terminal

#: The exit codes beside 0.
ATTENTION, FAILED = 1, 2
#: Seconds after which a process that was resting counts as one that rests: it may have begun again when it was asked.
RESTING_AFTER = 2.0
#: The answer for a process that rests with connections open. Its request stays.
_LATER = (True, "renews its connections after its next checkout")

#: By their PIDs: the processes with the ids of the requests to them; what they have said, and if that is well.
Asked = dict[int, tuple[Process, str | None]]
Said = dict[int, tuple[bool, str]]


class Command(BaseCommand):
    """The command, with a method for each subcommand."""

    help = "Examine, watch and steer the connection pools."
    # The doctor has to work where the settings are wrong.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="doctor|status|drain")
        doctor = subcommands.add_parser("doctor", help="connect to each pooled alias, and say what is wrong or risky")
        doctor.add_argument("--database", action="append", metavar="ALIAS", help="only this alias; may be repeated")
        doctor.add_argument("--workers", type=_count, help="processes on each host that use the pools")
        doctor.add_argument("--threads", type=_count, help="threads of each process that may want a connection at once")
        doctor.add_argument("--hosts", type=_count, default=1, help="machines with as many processes each; default 1")
        doctor.add_argument(
            "--fail-level",
            choices=LEVELS,
            default="warning",
            help="exit with 1 from this level of findings on; default warning",
        )
        doctor.add_argument("--json", action="store_true", help="print JSON")
        status = subcommands.add_parser("status", help="show the pools of this host's processes")
        status.add_argument("--json", action="store_true", help="print JSON; with --watch one line each time")
        status.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=1.0,
            metavar="SECONDS",
            help="show them again and again, every second unless said otherwise",
        )
        drain = subcommands.add_parser("drain", help="have processes of this host renew their connections")
        drain.add_argument("pid", nargs="*", type=int, help="only these processes")
        drain.add_argument("--database", metavar="ALIAS", help="only the pool of this alias")
        drain.add_argument("--wait", type=float, default=10.0, metavar="SECONDS", help="for the answers; default 10")
        drain.add_argument("--json", action="store_true", help="print JSON")
        for subcommand in (doctor, status, drain):
            _add_base_arguments(subcommand)

    def handle(self, *args: Any, **options: Any) -> None:
        color = True if options["force_color"] else False if options["no_color"] else None
        terminal = Terminal(self.stdout, color=color)  # type: ignore[arg-type]
        run = {"doctor": self.doctor, "status": self.status, "drain": self.drain}[options["subcommand"]]
        try:
            code = run(terminal, options)
        except (ImproperlyConfigured, OSError) as error:  # of the folder
            raise CommandError(str(error), returncode=FAILED) from error
        if code:
            sys.exit(code)

    # Each returns the exit code.

    def doctor(self, terminal: Terminal, options: dict[str, Any]) -> int:
        """Examine the pooled aliases."""
        pooled = pooled_aliases()
        aliases = options["database"] or pooled
        for alias in aliases:
            if alias not in pooled:
                words = "The database alias '{}' is not pooled." if alias in connections else "DATABASES has no alias '{}'."
                raise CommandError(words.format(alias), returncode=FAILED)
        if not aliases:
            raise CommandError("No database alias is pooled.", returncode=FAILED)
        processes, findings = _processes()
        report = diagnose(aliases, _crew(options, processes), processes)
        report.findings += findings
        if options["json"]:
            data = {**asdict(report), "can_connect": report.can_connect}
            self.stdout.write(json.dumps(data, indent=2))
        else:
            terminal.show(doctor_view.view(report))
        if not report.can_connect:
            return FAILED
        return ATTENTION if report.worst >= LEVELS.index(options["fail_level"]) else 0

    def status(self, terminal: Terminal, options: dict[str, Any]) -> int:
        """Show the processes of this host."""
        folder = _existing_folder()
        if options["watch"] is not None:
            self._watch(terminal, folder, options)
            return 0
        processes, unreadable = read_processes(folder)
        if options["json"]:
            self.stdout.write(json.dumps(status_view.as_data(folder, processes, unreadable), indent=2))
        else:
            terminal.show(status_view.view(folder, processes, unreadable))
        is_well = processes and not unreadable and not any(process.is_silent for process in processes)
        return 0 if is_well else ATTENTION

    def _watch(self, terminal: Terminal, folder: Path, options: dict[str, Any]) -> None:
        if not options["json"]:
            terminal.watch(lambda: status_view.view(folder, *read_processes(folder)), options["watch"])
            return
        try:
            while True:
                self.stdout.write(json.dumps(status_view.as_data(folder, *read_processes(folder))))
                self.stdout.flush()
                time.sleep(options["watch"])
        except KeyboardInterrupt:
            pass

    def drain(self, terminal: Terminal, options: dict[str, Any]) -> int:
        """Have processes renew their connections, and wait for their answers."""
        folder = _existing_folder()
        processes, _ = read_processes(folder)
        unknown = set(options["pid"]) - {process.pid for process in processes}
        if unknown:
            raise CommandError(
                f"No process {', '.join(map(str, sorted(unknown)))} has written into {folder}.", returncode=FAILED
            )
        asked = [process for process in processes if not options["pid"] or process.pid in options["pid"]]
        answers = _drain(folder, asked, options["database"], options["wait"])
        is_well = bool(answers) and all(answer["is_well"] for answer in answers)
        if options["json"]:
            self.stdout.write(json.dumps({"folder": str(folder), "processes": answers}, indent=2))
        else:
            lines: list[Element] = [Heading(f"{answer['pid']} {answer['program']}: {answer['said']}") for answer in answers]
            terminal.show(lines or [Heading(f"No process has written into {folder}.")])
        return 0 if is_well else ATTENTION


def _drain(folder: Path, processes: list[Process], using: str | None, wait: float) -> list[dict[str, Any]]:
    """Ask processes, wait until all have answered or the time is over, and withdraw what was not taken."""
    asked: Asked = {process.pid: (process, request_drain(folder, process, using)) for process in processes}
    said: Said = {}
    try:
        _hear(folder, asked, said, wait)
    finally:  # after Ctrl-C, too
        _withdraw(folder, asked, said)
    for pid in asked:
        said.setdefault(pid, (False, f"has not answered within {wait:g} s"))
    return [
        {"pid": pid, "program": process.program, "is_well": said[pid][0], "said": said[pid][1]}
        for pid, (process, _) in asked.items()
    ]


def _hear(folder: Path, asked: Asked, said: Said, wait: float) -> None:
    """Note what processes say, until all have said something or the time is over."""
    start = time.monotonic()
    while len(said) < len(asked) and (waited := time.monotonic() - start) < wait:
        now = {process.pid: process for process in read_processes(folder)[0]}
        for pid, (process, identity) in asked.items():
            if pid not in said and (answer := _answer(now.get(pid), process, identity, waited)) is not None:
                said[pid] = answer
        time.sleep(0.1)


def _withdraw(folder: Path, asked: Asked, said: Said) -> None:
    """Withdraw the requests that were not taken."""
    for pid, (process, _) in asked.items():
        if said.get(pid) != _LATER:
            withdraw(folder, process)


def _answer(now: Process | None, then: Process, identity: str | None, waited: float) -> tuple[bool, str] | None:
    """What has become of a request, and if that is well; ``None``: nothing yet."""
    if now is None or now.start != then.start:
        return True, "has ended"
    if now.answer is not None and now.answer["id"] == identity:
        error = now.answer["error"]
        return (True, "renews its connections") if error is None else (False, error)
    if waited > RESTING_AFTER and now.is_resting:
        return _LATER if now.open else (True, "has no connection open")
    return None


def _crew(options: dict[str, Any], processes: list[Process]) -> Crew:
    """Who uses the pools: as said, or as the environment of a web server has it, or as many processes as there are now."""
    found = crew_of()
    if found.workers is None and processes:
        found = Crew(workers=len(processes), source=f"processes in {SETTING}")
    given = {name: options[name] for name in ("workers", "threads") if options[name] is not None}
    source = " and ".join(["given"] * bool(given) + [found.source] * (len(given) < 2 and bool(found.source)))
    return replace(found, **given, hosts=options["hosts"], source=source)


def _folder() -> Path | None:
    value = getattr(settings, SETTING, None)
    return None if value is None else checked_folder(value)


def _processes() -> tuple[list[Process], list[Finding]]:
    """The processes that have written, for the doctor, and what is wrong with their folder."""
    folder = _folder()
    if folder is None:
        return [], []
    try:
        return read_processes(folder)[0], []
    except OSError as error:
        what = f"{SETTING} can't be read: {error}"
        return [], [Finding("warning", "status-folder", what, "Make the folder, for the site's user.")]


def _existing_folder() -> Path:
    folder = _folder()
    if folder is None:
        raise CommandError(
            f"The setting {SETTING} names no folder, so this site's processes write nothing to be read.", returncode=FAILED
        )
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise CommandError(f"{SETTING} can't be read: {error}", returncode=FAILED) from error
    return folder


def _add_base_arguments(parser: ArgumentParser) -> None:
    """Take Django's own options after the subcommand too, where people write them."""
    for name in ("--settings", "--pythonpath"):
        parser.add_argument(name, default=SUPPRESS, help=SUPPRESS)
    for name in ("--traceback", "--no-color", "--force-color"):
        parser.add_argument(name, action="store_true", default=SUPPRESS, help=SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, default=SUPPRESS, help=SUPPRESS)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_count.__name__ = "number of 1 or more"  # as argparse calls it in its errors
