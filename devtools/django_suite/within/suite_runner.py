"""Django's test runner, which also writes down what becomes of each test: lines of JSON, in the file of the environment.

With ``--parallel`` Django repeats in the parent process what its workers tell, so that one process writes.
"""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import TextTestResult

from django.test.runner import DiscoverRunner


def write(**record: Any) -> None:
    """A line; for the parent of the tests' forks it must be there before they are."""
    with open(os.environ["DJANGO_SUITE_RECORDS"], "a") as file:
        file.write(json.dumps(record) + "\n")


class RecordingResult(TextTestResult):
    """What unittest tells it, it writes down."""

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        write(test=test.id(), outcome="passed")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        test = getattr(test, "test_case", test)  # of a subtest
        write(test=test.id(), outcome="skipped", detail=reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        write(test=test.id(), outcome="failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        write(test=test.id(), outcome="failed", detail="It was expected to fail, and passed.")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        write(test=test.id(), outcome="failed", detail=self.errors[-1][1])

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        write(test=test.id(), outcome="failed", detail=self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            write(test=test.id(), outcome="failed", detail=f"{subtest}\n{self._exc_info_to_string(err, subtest)}")


class RecordingRunner(DiscoverRunner):
    """Tells how many tests there are, and the outcome of each."""

    def get_resultclass(self) -> type[TextTestResult]:
        return RecordingResult

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        write(total=suite.countTestCases())
        return super().run_suite(suite, **kwargs)
