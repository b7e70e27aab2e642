"""The same tests on several engines, and what the pooled ones differ in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from devtools.django_suite.differences import expected
from devtools.django_suite.environment import Environment
from devtools.django_suite.outcomes import FAILED, MISSING, Difference, Outcomes, differences
from devtools.django_suite.run import STOCK, Run
from devtools.server import Server

LOOK_SECONDS = 1


@dataclass
class Judgement:
    """What a pooled engine differs in from the stock one."""

    #: By the test, the reason why it is right.
    reasons: dict[str, str]
    right: list[Difference]
    doubtful: list[Difference]
    #: Listed as differences, and run, and none.
    outdated: list[str]
    #: Those of the doubtful that no run of their tests alone has shown again.
    passing: list[Difference]

    def look_again(self, stock: Outcomes, pooled: Outcomes) -> None:
        """After the doubtful have been run once more, alone."""
        repeated = {difference.test for difference in differences(stock, pooled)}
        if stock.is_whole and pooled.is_whole:
            self.passing = [difference for difference in self.doubtful if difference.test not in repeated]

    @property
    def left(self) -> list[Difference]:
        """Those that nothing explains."""
        return [difference for difference in self.doubtful if difference not in self.passing]


class Suite:
    """Django's tests on the servers of some engines."""

    def __init__(self, environment: Environment, servers: dict[str, Server], console: Console) -> None:
        self.environment = environment
        self.servers = servers
        self.console = console

    def run(self, labels: Sequence[str], processes: int) -> dict[str, Outcomes]:
        """The outcomes on each engine, all run at the same time."""
        return self._run(list(self.servers), labels, processes, "first")

    def judge(self, outcomes: dict[str, Outcomes]) -> dict[str, Judgement]:
        """What each pooled engine differs in; what nothing explains is run once more, alone, on the stock engine too."""
        stock = outcomes[STOCK]
        judged = {engine: judge(engine, stock, pooled) for engine, pooled in outcomes.items() if engine != STOCK}
        in_doubt = {engine: judgement for engine, judgement in judged.items() if judgement.doubtful}
        found = [difference for judgement in in_doubt.values() for difference in judgement.doubtful]
        labels = {label for difference in found for label in difference.labels}
        if labels:
            self.console.print(f"What {len(labels)} labels differ in is run once more, alone:")
            again = self._run([STOCK, *in_doubt], sorted(labels), 1, "once more")
            for engine, judgement in in_doubt.items():
                judgement.look_again(again[STOCK], again[engine])
        return judged

    def _run(self, engines: Sequence[str], labels: Sequence[str], processes: int, name: str) -> dict[str, Outcomes]:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress, ExitStack() as stack:
            runs = {}
            for engine in engines:
                task = progress.add_task(engine, total=1)
                runs[task] = Run(self.environment, self.servers[engine], engine, labels, processes, name)
                stack.callback(runs[task].close)
            while follow(runs, progress):
                time.sleep(LOOK_SECONDS)
        return {run.engine: run.outcomes for run in runs.values()}


def follow(runs: dict[TaskID, Run], progress: Progress) -> bool:
    """Show how far the runs are; whether any is still under way."""
    for task, run in runs.items():
        run.look()
        outcomes = run.outcomes
        told = f"{run.engine}: {len(outcomes.by_test):,} tests, {outcomes.count(FAILED)} failed"
        progress.update(task, description=told, completed=run.progress)
        if run.has_ended:
            progress.stop_task(task)
    return not all(run.has_ended for run in runs.values())


def judge(engine: str, stock: Outcomes, pooled: Outcomes) -> Judgement:
    """Before anything has been run again."""
    reasons = expected(engine)
    found = differences(stock, pooled)
    differing = {difference.test for difference in found}
    return Judgement(
        reasons=reasons,
        right=[difference for difference in found if difference.test in reasons],
        doubtful=[difference for difference in found if difference.test not in reasons],
        outdated=[test for test in reasons if test not in differing and stock.of(test) != MISSING],
        passing=[],
    )
