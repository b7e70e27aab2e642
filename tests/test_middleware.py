"""The release of a request's connections, under real web servers."""

from __future__ import annotations

import pytest
from django.test import Client, TestCase

from tests.shop.models import Account

SERVERS = ["gunicorn", "uvicorn"]
CAP = {"pool_size": 2, "max_overflow": 1, "timeout": 30}
VIEWS = {"/count/": 200, "/count-async/": 200, "/fail/": 500, "/leave-open/": 200}


@pytest.mark.parametrize("kind", SERVERS)
class TestUnder:
    @pytest.mark.parametrize("path", VIEWS)
    def test_a_request_gives_back_what_it_took(self, serve, kind, path):
        site = serve(kind)
        assert site.get(path).status_code == VIEWS[path]
        assert site.out() == 0
        assert not Account.objects.filter(name="never committed").exists()

    def test_the_cap_holds_in_a_storm(self, serve, kind, observer):
        site = serve(kind, pool=CAP, at_most=3)
        paths = list(VIEWS) * 50
        answers = site.storm(paths)
        assert answers == {200: 150, 500: 50}
        assert site.out() == 0
        assert 1 <= len(observer.connections_of(site.user)) <= 3
        assert "Too many" not in site.log.read_text()
        assert "max_user_connections" not in site.log.read_text()


class TestInsideTestCase(TestCase):
    """The test client runs the middleware in the test's own thread, inside the test's own transaction."""

    def test_what_the_test_holds_stays(self):
        account = Account.objects.create(name="of the test")
        assert Client().get("/count/").status_code == 200
        assert Account.objects.get(pk=account.pk).name == "of the test"
