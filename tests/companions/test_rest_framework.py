"""Django REST framework, under ``ATOMIC_REQUESTS``: what it answers with an error, it rolls back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.companions import needs
from tests.sites import Site

needs("rest_framework")

pytestmark = pytest.mark.companion


@pytest.fixture(scope="module")
def site(kind, serve_companion) -> Site:
    return serve_companion(kind, "rest")


def create(site: Site, **fields) -> str:
    """Create an account; its path."""
    answer = site.client.post("/api/accounts/", json=fields)
    assert answer.status_code == 201, answer.text
    return f"/api/accounts/{answer.json()['id']}/"


def test_create_read_update_delete(site):
    paths = [create(site, name=f"of the API {number}", balance=number) for number in range(6)]
    assert site.client.patch(paths[0], json={"balance": 50}).json()["balance"] == 50
    page = site.get("/api/accounts/").json()
    assert len(page["results"]) == 5
    assert site.client.get(page["next"]).status_code == 200
    assert site.client.post("/api/accounts/", json={"name": ""}).status_code == 400
    assert site.get("/api/accounts/0/").status_code == 404
    assert site.out() == 0
    for path in paths:
        assert site.client.delete(path).status_code == 204
        assert site.get(path).status_code == 404
    assert site.out() == 0


def test_what_it_refuses_is_rolled_back(site):
    path = create(site, name="spender", balance=10)
    assert site.client.post(f"{path}spend/", json={"amount": 4}).json()["balance"] == 6
    assert site.client.post(f"{path}spend/", json={"amount": 7}).status_code == 409
    assert site.get(path).json()["balance"] == 6
    assert site.out() == 0
    site.client.delete(path)


def test_on_commit(site):
    before = site.client.post("/create-and-tell/", json={"name": "told"}).json()["committed"]
    assert before == []
    assert site.client.post("/create-and-tell/", json={"name": "refused", "fail": True}).status_code == 409
    assert site.get("/committed/").json() == ["told"]
    names = [account["name"] for account in all_accounts(site)]
    assert "told" in names
    assert "refused" not in names
    for account in all_accounts(site):
        if account["name"] == "told":
            site.client.delete(f"/api/accounts/{account['id']}/")
    assert site.out() == 0


def all_accounts(site: Site) -> list[dict]:
    accounts, url = [], "/api/accounts/"
    while url:
        page = site.client.get(url).json()
        accounts += page["results"]
        url = page["next"]
    return accounts


def test_many_at_once(site):
    """30 spend one each, of 20: exactly 20 succeed, over two connections."""
    path = create(site, name="contended", balance=20)
    with ThreadPoolExecutor(10) as executor:
        codes = list(executor.map(lambda _: site.client.post(f"{path}spend/", json={"amount": 1}).status_code, range(30)))
    assert sorted(codes) == [200] * 20 + [409] * 10
    assert site.get(path).json()["balance"] == 0
    assert site.out() == 0
    site.client.delete(path)
