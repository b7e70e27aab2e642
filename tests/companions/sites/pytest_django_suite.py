"""A site's own tests, for pytest-django: ``test_pytest_django.py`` copies them into a project and runs them there."""

from __future__ import annotations

import threading
import urllib.request

import pytest
from django.db import connection, transaction

from django_mysqlpool import auto_close_db, pool_status
from tests.shop.models import Account


def out() -> int:
    return sum(status["out"] for status in pool_status().values())


def in_thread(action) -> list:
    answers = []

    @auto_close_db
    def run():
        answers.append(action())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answers


def refused() -> bool:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        Account.objects.count()
    return True


def test_the_database_is_refused():
    assert refused()


@pytest.mark.django_db
@pytest.mark.parametrize("turn", [1, 2])
def test_what_one_writes_the_next_does_not_find(turn):
    assert connection.settings_dict["NAME"].startswith("test_")
    assert Account.objects.count() == 0
    Account.objects.create(name="never committed")
    assert in_thread(Account.objects.count) == [0]


def test_the_database_is_refused_after_others_have_used_it():
    assert out() == 0
    assert refused()


@pytest.mark.django_db
def test_the_database_is_refused_in_between(django_db_blocker):
    """While the test's connection is out."""
    Account.objects.count()
    with django_db_blocker.block():
        assert refused()
    Account.objects.count()


@pytest.mark.django_db
def test_requests(client, django_assert_num_queries):
    """The test's connection stays its own, with its transaction, past a request that gives connections back."""
    Account.objects.create(name="of the test")
    with django_assert_num_queries(1):
        assert client.get("/count/").content == b"1"
    assert client.get("/write/").status_code == 200
    assert Account.objects.count() == 1


@pytest.mark.django_db
def test_on_commit(django_capture_on_commit_callbacks):
    done = []
    with django_capture_on_commit_callbacks(execute=True) as callbacks, transaction.atomic():
        Account.objects.create(name="of the test")
        transaction.on_commit(lambda: done.append(1))
    assert len(callbacks) == len(done) == 1


@pytest.mark.django_db(transaction=True)
def test_threads_see_what_is_committed():
    Account.objects.create(name="committed")
    assert in_thread(Account.objects.count) == [1]


def test_a_live_server(live_server, transactional_db):
    Account.objects.create(name="committed")
    for _ in range(5):
        with urllib.request.urlopen(f"{live_server.url}/count/") as answer:
            assert answer.read() == b"1"
    connection.close()
    assert out() == 0


def test_nothing_is_left_out():
    assert out() == 0
    assert refused()
