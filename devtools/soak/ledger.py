"""The ledger: accounts and a journal of transfers, and what must hold between them and the workers' records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from devtools.server import Server
from devtools.soak.records import ACKNOWLEDGED, FAILED, UNKNOWN, Records

ACCOUNTS = 50
BALANCE = 1_000_000
DATABASE = "mysqlpool_soak"
USER = "mysqlpool_soak"
#: ``max_allowed_packet`` of the server, in bytes: less than the driver takes.
LARGEST_PACKET = 2**20

# No unique key in the journal: a transfer that is applied twice must show, not fail.
_TABLES = (
    "CREATE TABLE account (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB",
    "CREATE TABLE journal (id CHAR(32), source INT, target INT, amount INT, KEY (id)) ENGINE=InnoDB",
)
_WRONG_BALANCES = f"""
    SELECT id, balance, {BALANCE} + moved FROM account JOIN (
        SELECT a, SUM(amount) moved FROM (
            SELECT target a, amount FROM journal UNION ALL SELECT source, -amount FROM journal) both_sides GROUP BY a
    ) moves ON a = id WHERE balance <> {BALANCE} + moved
"""


Ask = Callable[..., list[tuple[Any, ...]]]


@contextmanager
def asking(server: Server) -> Iterator[Ask]:
    """A connection that no worker has and no fault strikes; it answers the last of the statements it is given."""
    database = server.connect()

    def ask(*statements: str) -> list[tuple[Any, ...]]:
        with database.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    with closing(database):
        yield ask


def query(server: Server, *statements: str) -> list[tuple[Any, ...]]:
    """What the server answers to the last of the statements."""
    with asking(server) as ask:
        return ask(*statements)


def create(server: Server, password: str) -> None:
    """Make the tables, and a user who may have no connection more than others."""
    drop(server)
    login = f"'{USER}'@'%' IDENTIFIED BY '{password}'"
    grant = f"GRANT ALL ON {DATABASE}.* TO '{USER}'@'%'"
    rows = ", ".join(f"({number}, {BALANCE})" for number in range(ACCOUNTS))
    fill = f"INSERT INTO account VALUES {rows}"
    query(server, f"CREATE DATABASE {DATABASE}", f"CREATE USER {login}", grant, f"USE {DATABASE}", *_TABLES, fill)


def drop(server: Server) -> None:
    """Leave nothing of it."""
    query(server, f"DROP USER IF EXISTS '{USER}'@'%'", f"DROP DATABASE IF EXISTS {DATABASE}")


def connections(server: Server) -> list[int]:
    """The server's ids of the workers' connections."""
    return [row[0] for row in query(server, f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'")]


def violations(server: Server, records: Iterable[Records]) -> Iterator[str]:
    """What the ledger and the records say against each other; nothing where all is well."""
    told: dict[str, set[str]] = {kind: set() for kind in (ACKNOWLEDGED, UNKNOWN, FAILED)}
    for record in records:
        for kind, transfers in record.transfers.items():
            told[kind] |= transfers
    use = f"USE {DATABASE}"
    applied = Counter(row[0] for row in query(server, use, "SELECT id FROM journal"))
    found = {
        "acknowledged and lost": told[ACKNOWLEDGED] - applied.keys(),
        "applied more than once": {number for number, times in applied.items() if times > 1},
        "applied though it failed before its commit": told[FAILED] & applied.keys(),
        "applied and never told of": applied.keys() - set().union(*told.values()),
    }
    for what, transfers in found.items():
        if transfers:
            yield f"{len(transfers)} transfers {what}, {min(transfers)} for one"
    total = query(server, use, "SELECT SUM(balance) FROM account")[0][0]
    if total != ACCOUNTS * BALANCE:
        yield f"the sum of the ledger is {total} and was {ACCOUNTS * BALANCE}"
    for account, balance, wanted in query(server, use, _WRONG_BALANCES):
        yield f"account {account} has {balance}, by the journal it should have {wanted}"
