"""How ``make django-suite`` reads and compares runs; the runs themselves are too long for here (``.ci/run``)."""

from __future__ import annotations

import json

import pytest

from devtools.django_suite.differences import expected
from devtools.django_suite.outcomes import FAILED, MISSING, PASSED, SKIPPED, Difference, Outcomes, differences
from devtools.django_suite.run import modules
from devtools.django_suite.suite import judge

pytestmark = pytest.mark.unit


def outcomes(**by_test: str) -> Outcomes:
    return Outcomes(by_test=by_test)


class TestReading:
    def test_the_worst_that_is_told_of_a_test_counts(self):
        read = Outcomes()
        read.note({"test": "a", "outcome": FAILED, "detail": "(number=1)"})
        read.note({"test": "a", "outcome": PASSED})
        assert (read.of("a"), read.details["a"]) == (FAILED, "(number=1)")

    def test_a_line_that_is_not_yet_whole_is_read_later(self, tmp_path):
        path, read = tmp_path / "records", Outcomes()
        lines = "".join(
            json.dumps(record) + "\n" for record in ({"total": 2}, {"test": "a", "outcome": SKIPPED, "detail": ""})
        )
        with path.open("w") as writer, path.open() as reader:
            for part in (lines[:20], lines[20:]):
                writer.write(part)
                writer.flush()
                before = dict(read.by_test)
                read.read_on(reader)
        assert (before, read.by_test, read.total) == ({}, {"a": SKIPPED}, 2)


class TestComparing:
    def test_a_failure_of_both_is_no_difference(self):
        assert differences(outcomes(a=FAILED, b=PASSED), outcomes(a=FAILED, b=PASSED)) == []

    def test_whatever_ends_otherwise_is(self):
        stock = outcomes(a=PASSED, b=PASSED, c=FAILED, d=PASSED)
        pooled = outcomes(a=FAILED, b=SKIPPED, c=PASSED, e=FAILED)
        found = {(difference.test, difference.stock, difference.pooled) for difference in differences(stock, pooled)}
        assert found == {
            ("a", PASSED, FAILED),
            ("b", PASSED, SKIPPED),
            ("c", FAILED, PASSED),
            ("d", PASSED, MISSING),
            ("e", MISSING, FAILED),
        }

    def test_labels_run_it_again(self):
        def labels(test: str) -> list[str]:
            return Difference(test, PASSED, FAILED, "").labels

        assert labels("schema.tests.SchemaTests.test_add_field") == ["schema.tests.SchemaTests.test_add_field"]
        assert labels("setUpClass (schema.tests.SchemaTests)") == ["schema.tests.SchemaTests"]
        assert labels("runtests (backends schema)") == ["backends", "schema"]


class TestJudging:
    def test_only_what_is_listed_is_right(self):
        listed = next(iter(expected("request")))
        stock = Outcomes(by_test={listed: PASSED, "a": PASSED})
        judgement = judge("request", stock, Outcomes(by_test={listed: FAILED, "a": FAILED}))
        assert [difference.test for difference in judgement.right] == [listed]
        assert [difference.test for difference in judgement.left] == ["a"]

    def test_what_is_listed_and_no_difference_is_told(self):
        both = Outcomes(by_test=dict.fromkeys(expected("request"), PASSED))
        assert judge("request", both, both).outdated == list(expected("request"))
        assert judge("request", Outcomes(), Outcomes()).outdated == []

    def test_what_does_not_show_again_has_passed_by(self):
        judgement = judge("request", outcomes(a=PASSED, b=PASSED), outcomes(a=FAILED, b=FAILED))
        judgement.look_again(outcomes(a=PASSED, b=PASSED), outcomes(a=PASSED, b=FAILED))
        assert [difference.test for difference in judgement.left] == ["b"]

    def test_what_could_not_be_run_again_has_not(self):
        broken = outcomes()
        broken.note_broken(["a"], "")
        judgement = judge("request", outcomes(a=PASSED), outcomes(a=FAILED))
        judgement.look_again(broken, broken)
        assert [difference.test for difference in judgement.left] == ["a"]

    def test_a_mode_has_its_own_list(self):
        test = (expected("transaction").keys() - expected("request").keys()).pop()
        stock, pooled = Outcomes(by_test={test: PASSED}), Outcomes(by_test={test: FAILED})
        assert not judge("transaction", stock, pooled).left
        assert judge("request", stock, pooled).left


def test_modules_are_those_that_runtests_finds(tmp_path):
    for name in ("backends", "gis_tests", "test_runner_apps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "templates").mkdir()
    assert modules(tmp_path) == ["backends"]
