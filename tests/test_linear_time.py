"""The analysis of statements takes a time that is linear in their length, whatever they are."""

from __future__ import annotations

import time

import pytest

from django_mysqlpool.mysqlpool.statements import LONGEST_REMEMBERED, analyser_for

pytestmark = pytest.mark.python

analyse = analyser_for("10.11.19-MariaDB-ubu2204", "utf8mb4")

#: Of each kind of character, and of each pattern of the analysis.
UNITS = ["a", "1", "_", "$", " ", "\n", "'", '"', "`", "\\", "(", ")", "/*", "*/", "/* ", "/*!", "/*+", "#", "-", "-- "]
UNITS += ["%", "%s", "%(", "@", "@@", ";", ".", ",", "\xe9", "\xa0", "\0", "0x", "a(", "a.", "''", "\\'", "%%", ":", "*/ ("]
UNITS += [
    "select ",
    "into ",
    "as ",
    "as a(",
    "set ",
    "last_insert_id(",
    "show ",
    "savepoint ",
    "with ",
    "next ",
]
HEADS = ["", "SELECT ", "INSERT INTO t VALUES (", "INSERT ", "WITH ", "SET ", "SAVEPOINT ", "ROLLBACK TO ", "EXPLAIN "]
HEADS += ["SELECT '", "SELECT `", 'SELECT "', "SELECT /*", "SELECT LAST_INSERT_ID(", "SHOW ", "@@", "/*!", "SELECT a AS "]


def seconds(text: str) -> float:
    """Of the processor's, to analyse a text that has not been seen before."""
    begin = time.process_time()
    analyse(text + " " * LONGEST_REMEMBERED)
    return time.process_time() - begin


class TestAnyTextIsAnalysedInLinearTime:
    """A backtracking pattern needs minutes for long texts; of short ones, what takes long is tried at four times that."""

    SHORT, SUSPECT = 3_000, 0.05

    def assert_linear(self, text: str) -> None:
        if seconds(text) > self.SUSPECT:
            once, four_times = (min(seconds(text * times) for _ in range(3)) for times in (1, 4))
            assert four_times < 8 * once + self.SUSPECT, text[:50]

    @pytest.mark.parametrize("head", HEADS)
    def test_runs(self, head):
        for unit in UNITS:
            self.assert_linear(head + unit * (self.SHORT // len(unit)))

    @pytest.mark.parametrize("first", UNITS)
    def test_runs_of_two(self, first):
        for second in UNITS:
            self.assert_linear("SELECT " + (first + second) * (self.SHORT // len(first + second)))
            half = self.SHORT // 2
            self.assert_linear("WITH " + first * (half // len(first)) + second * (half // len(second)) + first)

    @pytest.mark.parametrize("unit", UNITS)
    @pytest.mark.parametrize("head", ["SELECT ", "/*!", "INSERT INTO t VALUES ('"])
    def test_long_runs(self, head, unit):
        assert seconds(head + unit * (200_000 // len(unit))) < 4
