"""What a run tells of its tests, and what two runs differ in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO

PASSED, SKIPPED, FAILED, EXPECTED, MISSING = "passed", "skipped", "failed", "failed as expected", "not run"
#: The worst that was told of a test counts: a subtest that fails makes the test one that failed.
_RANK = {outcome: rank for rank, outcome in enumerate((PASSED, EXPECTED, SKIPPED, FAILED))}


@dataclass
class Outcomes:
    """The outcome of each test that has ended, by its id, and why it isn't that it passed."""

    #: How many tests the process that runs now has.
    total: int = 0
    #: Whether each process has come to its end.
    is_whole: bool = True
    by_test: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def note(self, record: dict[str, str | int]) -> None:
        """Count in what a run has written."""
        if "total" in record:
            self.total = int(record["total"])
            return
        test, outcome = str(record["test"]), str(record["outcome"])
        if _RANK[outcome] >= _RANK[self.by_test.setdefault(test, outcome)]:
            self.by_test[test] = outcome
            if "detail" in record:
                self.details[test] = str(record["detail"])

    def read_on(self, file: IO[str]) -> None:
        """Count in what a run has written since the last time, but for a line that is not yet whole."""
        start = file.tell()
        while (line := file.readline()).endswith("\n"):
            self.note(json.loads(line))
            start = file.tell()
        file.seek(start)

    def note_broken(self, labels: Sequence[str], why: str) -> None:
        """A process that was to run these labels has not come to its end; that counts as a test of its own."""
        self.is_whole = False
        self.note({"test": f"runtests ({' '.join(labels)})", "outcome": FAILED, "detail": why})

    def of(self, test: str) -> str:
        """The outcome of a test; where its class or module could not be set up, it was not run."""
        return self.by_test.get(test, MISSING)

    def failed(self) -> list[str]:
        """The tests that did."""
        return [test for test, outcome in self.by_test.items() if outcome == FAILED]

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return Counter(self.by_test.values())[outcome]


@dataclass(frozen=True)
class Difference:
    """A test that ends otherwise on the pooled engine than on the stock one."""

    test: str
    stock: str
    pooled: str
    detail: str

    @property
    def labels(self) -> list[str]:
        """What runs it again: a test, or the class or modules that could not be set up or did not come to their end."""
        group = re.fullmatch(r"\w+ \((.+)\)", self.test)
        return group[1].split() if group else [self.test]


def differences(stock: Outcomes, pooled: Outcomes) -> list[Difference]:
    """In the order of the pooled run; which test is skipped differs too."""
    tests: Iterable[str] = dict.fromkeys([*pooled.by_test, *stock.by_test])
    return [
        Difference(test, stock.of(test), pooled.of(test), pooled.details.get(test, ""))
        for test in tests
        if stock.of(test) != pooled.of(test)
    ]
