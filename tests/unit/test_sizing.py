"""Advice about the size of a pool."""

from __future__ import annotations

import pytest

from django_mysqlpool.mysqlpool.pool.sizing import Period, advice

pytestmark = pytest.mark.unit


def period(**counts: float) -> Period:
    """Ten minutes of a hundred checkouts a second."""
    return Period(**{"seconds": 600.0, "checkouts": 60_000, "waits": 0, "failures": 0, "use_seconds": 0.0, **counts})


def test_the_mean_is_littles_law():
    # A hundred a second, each out for 20 ms: two at once.
    assert period(use_seconds=1200.0).in_use == 2.0
    assert period(use_seconds=2400.0).needed == 8  # 4 + 2 * 2


@pytest.mark.parametrize(
    ("counts", "cap", "words"),
    [
        ({"use_seconds": 9000.0, "waits": 6000}, 15, "Raise pool_size and max_overflow to 23 in all"),
        ({"use_seconds": 1200.0, "waits": 6000}, 15, "the checkouts come in bursts"),
        ({"use_seconds": 1200.0, "failures": 1}, 15, "1 in vain"),
        ({"use_seconds": 8000.0}, 15, "a little more traffic will have to wait"),
        ({"use_seconds": 1200.0}, 40, "You may lower pool_size and max_overflow to 5 in all"),
    ],
)
def test_it_says(counts, cap, words):
    (sentence,) = advice(period(**counts), cap)
    assert words in sentence
    assert f"of {cap} connections were in use on average in the last 10 min (100.0 checkouts a second)" in sentence


@pytest.mark.parametrize(
    ("counts", "cap"),
    [
        ({"use_seconds": 1200.0}, 8),  # all is well
        ({"use_seconds": 1200.0, "waits": 500}, 8),  # as few waits do no harm
        ({"checkouts": 99}, 100),  # too little has happened
        ({"use_seconds": 9000.0, "waits": 6000}, None),  # no cap
        ({"use_seconds": 0.0}, 5),  # a small pool is no waste
    ],
)
def test_it_says_nothing(counts, cap):
    assert advice(period(**counts), cap) == []


def test_a_failure_is_told_however_little_has_happened():
    assert "1 of 1 checkouts had to wait" in advice(period(checkouts=1, waits=1, failures=1), 5)[0]


def test_a_period_that_has_just_begun():
    assert period(seconds=0.0).in_use == 0.0
    assert period(seconds=0.0).needed == 1
