"""What no reset clears: such a session is closed. And what the manuals and we have thought of, which a reset does clear."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import DatabaseError
from MySQLdb import Error as DriverError

from django_mysqlpool.mysqlpool.backend.threads import check_in
from tests import DRIVER
from tests.helpers import SEVERAL_STATEMENTS, backend_pid, fetch, succeeds

pytestmark = [pytest.mark.driver, pytest.mark.server]

TRACE = ["SET SESSION optimizer_trace = 'enabled=on'", "SELECT name, 'a secret' FROM shop_account"]
TRACES = "SELECT COUNT(*) FROM information_schema.optimizer_trace"
PROFILES = "SHOW PROFILES"
GROUP = "SELECT resource_group FROM performance_schema.threads WHERE processlist_id = CONNECTION_ID()"
#: What one borrower does, and what shows it to the next.
LEAVES = {
    "profiling": (["SET profiling = 1", "SELECT 'a secret'"], PROFILES),
    "profiling, as a system variable": (["SET @@SESSION.profiling = 1", "SELECT 'a secret'"], PROFILES),
    "profiling, quoted": (["SET `profiling` = 1", "SELECT 'a secret'"], PROFILES),
    "profiling, in a comment that is code": (["/*!50000 SET profiling = 1 */", "SELECT 'a secret'"], PROFILES),
    "profiling, among others": (["SELECT 1; SET sql_mode = '', profiling = 1; SELECT 'a secret'"], PROFILES),
    "profiling, prepared": (["PREPARE p FROM 'SET profiling = 1'", "EXECUTE p", "SELECT 'a secret'"], PROFILES),
    "profiling, compound": (["BEGIN NOT ATOMIC SET profiling = 1; END", "SELECT 'a secret'"], PROFILES),
    "profiling, in a procedure": (["CALL tests_profiles()", "SELECT 'a secret'"], PROFILES),
    "profiling, in a function": (["SELECT tests_profiling()", "SELECT 'a secret'"], PROFILES),
    "profiling, put together": (
        ["SET @s = CONCAT('SET pro', 'filing = 1')", "PREPARE p FROM @s", "EXECUTE p", "SELECT 'a secret'"],
        PROFILES,
    ),
    "profiling, on and off in a procedure": (["CALL tests_profiles()", "SELECT 'a secret'", "CALL tests_ends()"], PROFILES),
    "a role, in a procedure": (["CALL tests_roles()"], "SELECT CURRENT_ROLE()"),
    "traces, in a procedure": (["CALL tests_traces()", TRACE[1]], TRACES),
    "traces, in a function": (["SELECT tests_tracing()", TRACE[1]], TRACES),
    "traces": (TRACE, TRACES),
    "traces, of one statement": (["SET STATEMENT optimizer_trace='enabled=on' FOR SELECT * FROM shop_account"], TRACES),
    "a hint": (["SELECT /*+ SET_VAR(optimizer_trace = 'enabled=on') */ * FROM shop_account"], TRACES),
    "a resource group": (["SET RESOURCE GROUP tests_group"], GROUP),
    "a resource group, spelled otherwise": (["set resource/* */group tests_group"], GROUP),
    "a resource group's hint": (["SELECT /*+ RESOURCE_GROUP(tests_group) */ 1"], GROUP),
    "a time of its own": (["SET timestamp = 1"], "SELECT YEAR(NOW()) > 2000"),
    "an id to insert": (["SET insert_id = 777777"], "SELECT @@insert_id"),
    "a last id": (["SET last_insert_id = 5", "SELECT LAST_INSERT_ID(7)"], "SELECT LAST_INSERT_ID(), SLEEP(0)"),
    "a sequence": (["SELECT NEXTVAL(tests_sequence)"], "SELECT LASTVAL(tests_sequence)"),
    "an isolation level for once": (
        ["SET TRANSACTION READ ONLY"],
        "INSERT INTO shop_account (name, balance) VALUES ('w', 1)",
    ),
    "no log": (["SET sql_log_bin = 0"], "SELECT @@sql_log_bin"),
    "a lock for a backup": (["LOCK INSTANCE FOR BACKUP"], "SELECT 1"),
    "a stage of a backup": (["BACKUP STAGE START"], "BACKUP STAGE START"),
    "a GTID": (["SET gtid_next = 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa:1'"], "SELECT @@gtid_next"),
    "a thread's id": (["SET pseudo_thread_id = 77"], "SELECT @@pseudo_thread_id = CONNECTION_ID()"),
}


TRACING = "SET SESSION optimizer_trace = 'enabled=on'"
#: What there is on the server for it, as far as it is of this server; and how it is made.
MADE = {
    "SEQUENCE mysqlpool_tests.tests_sequence": "",
    "RESOURCE GROUP tests_group": "TYPE = USER VCPU = 0",
    "ROLE tests_role": "",
    "PROCEDURE mysqlpool_tests.tests_profiles": "() SET profiling = 1",
    "PROCEDURE mysqlpool_tests.tests_ends": "() SET profiling = 0",
    "PROCEDURE mysqlpool_tests.tests_roles": "() SET ROLE tests_role",
    "PROCEDURE mysqlpool_tests.tests_traces": f"() {TRACING}",
    "FUNCTION mysqlpool_tests.tests_profiling": "() RETURNS INT DETERMINISTIC BEGIN SET profiling = 1; RETURN 1; END",
    "FUNCTION mysqlpool_tests.tests_tracing": f"() RETURNS INT DETERMINISTIC BEGIN {TRACING}; RETURN 1; END",
    "FUNCTION mysqlpool_tests.tests_one": "() RETURNS INT DETERMINISTIC RETURN 1",
}


@pytest.fixture
def wrapper(make_alias, observer):
    for what, how in MADE.items():
        with suppress(DriverError):  # the other server's
            observer.query(f"CREATE {what} {how}")
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 5}, options=SEVERAL_STATEMENTS)
    observer.query(f"GRANT tests_role TO '{wrapper.settings_dict['USER']}'@'%%'")
    yield wrapper
    observer.query("DELETE FROM mysqlpool_tests.shop_account")
    for what in MADE:
        with suppress(DriverError):
            observer.query(f"DROP {what}{' FORCE' if 'GROUP' in what else ''}")


def answer(wrapper, sql: str) -> object:
    try:
        rows = fetch(wrapper, sql)
    except DatabaseError as error:
        return error.args[0]
    return [row for row in rows if sql != PROFILES or "secret" in str(row)]


@pytest.mark.parametrize("name", LEAVES)
def test_it_does_not_reach_the_next_borrower(wrapper, name):
    leave, look = LEAVES[name]
    new = answer(wrapper, look)
    wrapper.pool.close()
    check_in(wrapper.alias)
    with wrapper.cursor() as cursor:
        for sql in leave:
            with suppress(DatabaseError, DriverError):  # the other server's
                cursor.execute(sql)
                while cursor.nextset():
                    pass
    wrapper.close()
    assert answer(wrapper, look) == new


@pytest.mark.parametrize("sql", ["SET profiling = 0", "SET optimizer_trace = 'enabled=off'"])
def test_it_costs_the_connection(wrapper, sql):
    first = backend_pid(wrapper)
    wrapper.close()
    assert succeeds(wrapper, sql)
    wrapper.close()
    assert backend_pid(wrapper) != first


@pytest.mark.parametrize("default_role", [False, True])
@pytest.mark.parametrize(
    "sql", ["CALL tests_ends()", "SELECT tests_one()", "PREPARE p FROM 'SELECT 1'", "SET @a = 1", "SELECT GET_LOCK('a', 0)"]
)
def test_stored_code_that_leaves_nothing_costs_no_connection(wrapper, observer, sql, default_role):
    """The session is asked, and has been reset. A default role is the account's, and nothing that was left."""
    if default_role:
        if DRIVER == "pymysql" and not wrapper.mysql_is_mariadb:
            pytest.skip("with PyMySQL, a reset leaves MySQL's roles: such a session is closed")
        word = "FOR" if wrapper.mysql_is_mariadb else "TO"
        observer.query(f"SET DEFAULT ROLE tests_role {word} '{wrapper.settings_dict['USER']}'@'%%'")
    wrapper.close_pool()
    wrapper.close()
    first = backend_pid(wrapper)
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
    wrapper.close()
    assert backend_pid(wrapper) == first
