"""Puts together what the doctor says of all aliases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.core.checks.registry import registry

from django_mysqlpool import checks

from .examination import examine
from .facts import AliasFacts
from .findings import LEVELS, Finding, findings_of
from .sizing import Crew, Proposal, propose, room_for

if TYPE_CHECKING:
    from django_mysqlpool.monitoring.process_files import Process


@dataclass
class Diagnosis:
    """What the doctor says of an alias."""

    facts: AliasFacts
    findings: list[Finding]
    proposal: Proposal | None


@dataclass
class Report:
    """What the doctor says."""

    crew: Crew
    aliases: list[Diagnosis]
    #: Of the settings as a whole.
    findings: list[Finding] = field(default_factory=list)

    @property
    def can_connect(self) -> bool:
        return all(diagnosis.facts.problem is None for diagnosis in self.aliases)

    @property
    def worst(self) -> int:
        """The worst level found, as its place in ``LEVELS``; -1: nothing was found."""
        found = [*self.findings, *(finding for diagnosis in self.aliases for finding in diagnosis.findings)]
        return max((LEVELS.index(finding.level) for finding in found), default=-1)


def diagnose(aliases: Iterable[str], crew: Crew, processes: Iterable[Process] = ()) -> Report:
    """Examine aliases, and judge what was found.

    :param aliases: which
    :param crew: who uses their pools
    :param processes: those whose files tell what their pools say about their own size
    """
    found = [examine(alias) for alias in aliases]
    advice = _advice(processes)
    diagnoses = []
    for facts in found:
        room = None if facts.problem else room_for(facts, found)
        findings = findings_of(facts, crew, room) + [finding for alias, finding in advice if alias == facts.alias]
        diagnoses.append(Diagnosis(facts, findings, propose(crew, room) if room else None))
    return Report(crew, diagnoses, _of_settings())


def _advice(processes: Iterable[Process]) -> list[tuple[str, Finding]]:
    """What running processes say of the sizes of their pools, by the alias; the same sentence once."""
    found: dict[tuple[str, str], list[int]] = {}
    for process in processes:
        for pool in process.pools.values():
            for alias in pool["aliases"]:
                for sentence in pool["advice"]:
                    found.setdefault((alias, sentence), []).append(process.pid)
    return [
        (alias, Finding("info", "advice", sentence, f"Said by the pool of process {', '.join(map(str, pids))}."))
        for (alias, sentence), pids in found.items()
    ]


_LEVEL_OF = ((40, "error"), (30, "warning"), (0, "info"))  # Django's numbers


def _of_settings() -> list[Finding]:
    """What the package's own system checks say, those of ``check --deploy`` too."""
    found: list[Finding] = []
    for check in registry.get_checks(include_deployment_checks=True):
        # (Of an alias with wrong options it is told why it can't connect.)
        if not check.__module__.startswith(f"{checks.__name__}.") or check is checks.check_wrong_options:
            continue
        for message in check(app_configs=None, databases=None):
            level = next(name for number, name in _LEVEL_OF if message.level >= number)
            found.append(Finding(level, str(message.id), str(message.msg), str(message.hint or "")))
    return found
