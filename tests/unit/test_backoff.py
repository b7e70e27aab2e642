"""When a pool may open a connection: after a failure one attempt at a time, and where the server is full after pauses."""

from __future__ import annotations

import pytest

import django_mysqlpool.mysqlpool.pool.backoff as module
from django_mysqlpool.mysqlpool.pool.backoff import FIRST_PAUSE, JITTER, LONGEST_PAUSE, Backoff

pytestmark = pytest.mark.unit


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which the test moves on; pauses are as long as they can be."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.random, "uniform", lambda least, most: most)
    return now


def test_a_closed_one_allows_any_attempt(clock):
    backoff = Backoff()
    for attempt in ("a", "b"):
        assert backoff.allows_attempt
        backoff.start_attempt(attempt)
    assert backoff.allows_attempt
    assert repr(backoff) == "<Backoff closed, 0 failures>"


def test_after_a_failure_it_allows_one_attempt_at_a_time(clock):
    backoff = Backoff()
    backoff.failed()
    assert repr(backoff) == "<Backoff half-open, 1 failures>"
    assert backoff.allows_attempt
    backoff.start_attempt("a")
    assert not backoff.allows_attempt
    backoff.end_attempt("b")  # one that was admitted before the failure
    assert not backoff.allows_attempt
    backoff.end_attempt("a")
    assert backoff.allows_attempt


def test_an_attempt_that_succeeds_closes_it(clock):
    backoff = Backoff()
    backoff.refused()
    clock[0] += LONGEST_PAUSE
    backoff.start_attempt("a")
    backoff.succeeded()
    assert backoff.is_closed
    assert backoff.seconds_left() == 0
    for attempt in ("b", "c"):
        assert backoff.allows_attempt
        backoff.start_attempt(attempt)


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success(clock):
    backoff, pauses = Backoff(), []
    for _ in range(7):
        backoff.refused()
        assert not backoff.allows_attempt
        pauses.append(round(backoff.seconds_left(), 6))
        clock[0] += backoff.seconds_left()
        assert backoff.allows_attempt
    assert pauses == [FIRST_PAUSE * factor for factor in (1, 2, 4, 8, 16)] + [LONGEST_PAUSE] * 2
    backoff.succeeded()
    backoff.refused()
    assert backoff.seconds_left() == pytest.approx(FIRST_PAUSE)


def test_a_pause_may_be_shorter_by_chance(clock, monkeypatch):
    """So that processes that were refused together don't come back together."""
    monkeypatch.setattr(module.random, "uniform", lambda least, most: least)
    backoff = Backoff()
    backoff.refused(first=2, longest=2)
    assert backoff.seconds_left() == pytest.approx(2 * JITTER)
