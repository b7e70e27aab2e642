"""What is asked of the driver's own connection, past every cursor of ours, does not reach the next borrower either."""

from __future__ import annotations

import gc
import sys
from weakref import ref

import pytest
from django.db import connection as default_connection
from MySQLdb.cursors import DictCursor, SSCursor

from django_mysqlpool import hold_connection, pool_status
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from tests import DRIVER
from tests.helpers import DATABASE, OTHER_DATABASE, Snapshot, backend_pid, fetch, holds, snapshot

pytestmark = [
    pytest.mark.driver,
    pytest.mark.server,
    pytest.mark.mode,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("other_database"),
]


def read(raw) -> None:
    """PyMySQL reads its answers by itself."""
    if DRIVER == "mysqlclient":
        raw.store_result()


BOTH = {
    "select_db": lambda raw: raw.select_db(OTHER_DATABASE),
    "set_character_set": lambda raw: raw.set_character_set("latin1"),
    "set_character_set, collation": lambda raw: raw.set_character_set("utf8mb4", "utf8mb4_bin"),
    "autocommit": lambda raw: raw.autocommit(False),
    "begin": lambda raw: (raw.begin(), read(raw)),
    "USE": lambda raw: (raw.query(f"USE {OTHER_DATABASE}"), read(raw)),
    "SET in bytes": lambda raw: (raw.query(b"SET @a = 1, sql_mode = ''"), read(raw)),
    "lock": lambda raw: (raw.query("SELECT GET_LOCK('lock_a', 0)"), read(raw)),
    "another cursor": lambda raw: raw.cursor(DictCursor).execute("SET @a = 2"),
    "another cursor, unbuffered": lambda raw: (
        cursor := raw.cursor(SSCursor),
        cursor.execute("SET @b = 2"),
        cursor.close(),
    ),
    "cursorclass": lambda raw: setattr(raw, "cursorclass", DictCursor),
}


def user_of(raw) -> str:
    return raw.mysqlpool_session.lease.borrower().settings_dict["USER"]


ONE = {
    "mysqlclient": {
        "set_sql_mode": lambda raw: raw.set_sql_mode("ANSI_QUOTES"),
        "change_user": lambda raw: raw.change_user(user_of(raw), "s3cret-of-a-test", "information_schema"),
        "set_server_option": lambda raw: raw.set_server_option(1),  # no more several statements in one
        "send_query, unread": lambda raw: raw.send_query(b"SELECT 'secret', SLEEP(0.2)"),
        "send_query": lambda raw: (raw.send_query(b"SET @c = 1"), raw.read_query_result(), raw.store_result()),
    },
    "pymysql": {
        "_execute_command": lambda raw: (raw._execute_command(2, OTHER_DATABASE), raw._read_ok_packet()),
        "connect": lambda raw: (raw.close(), raw.connect()),
        "ping": lambda raw: (raw.close(), raw.ping(reconnect=True)),
    },
}
CALLS = {**BOTH, **ONE[DRIVER]}


def seen(wrapper) -> dict[str, object]:
    with hold_connection(wrapper.alias):
        raw = {"cursor": type(fetch_raw(wrapper)), "charset": wrapper.connection.character_set_name()}
        raw |= {"encoding": wrapper.connection.encoding, "several": several(wrapper)}
        return {**snapshot(wrapper), **raw}


def fetch_raw(wrapper):
    wrapper.ensure_connection()
    with wrapper.connection.cursor() as cursor:
        cursor.execute("SELECT %s AS a", ("x",))
        return cursor.fetchone()


def several(wrapper) -> bool:
    wrapper.ensure_connection()
    with wrapper.connection.cursor() as cursor:
        try:
            cursor.execute("SELECT 1; SELECT 2")
            return bool(cursor.nextset())
        except wrapper.Database.Error:
            return False


@pytest.mark.parametrize("name", CALLS)
def test_the_next_borrower_sees_a_new_session(make_alias, name):
    wrapper = make_alias(pool={"pool_size": 1, "max_overflow": 0, "timeout": 5})
    new = Snapshot(seen(wrapper))
    wrapper.close()
    wrapper.ensure_connection()
    CALLS[name](wrapper.connection)
    wrapper.close()
    assert seen(wrapper) == new


@pytest.mark.parametrize(
    "call",
    [
        lambda raw: (raw.query("SELECT 1"), read(raw)),
        lambda raw: raw.ping(),
        lambda raw: raw.get_autocommit(),
        lambda raw: raw.commit(),
        lambda raw: raw.rollback(),
        lambda raw: raw.show_warnings(),
        lambda raw: raw.character_set_name(),
        lambda raw: raw.escape("a"),
        lambda raw: raw.cursor(SSCursor).close(),
    ],
)
def test_a_harmless_call_costs_no_reset(make_alias, call):
    wrapper = make_alias()
    wrapper.ensure_connection()
    call(wrapper.connection)
    assert not wrapper.lease.session.is_dirty


# (Nothing tells of an attribute that is set.)
@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"cursorclass"}))
def test_nor_is_there_anything_of_one_that_was_kept_after_its_checkin(make_alias, name):
    wrapper = make_alias()
    new = seen(wrapper)
    wrapper.close()
    wrapper.ensure_connection()
    raw = wrapper.connection
    user = user_of(raw)
    wrapper.close()
    # A driver's connection is for one thread at a time: maintenance would close it if it found the answer on its way.
    maintenance.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "user_of", lambda raw: user)
        CALLS[name](raw)
    assert seen(wrapper) == new


@holds
@pytest.mark.skipif(DRIVER == "pymysql", reason="of PyMySQL's, ping() itself connects again: above")
def test_to_ask_for_reconnection_costs_the_connection(make_alias):
    wrapper = make_alias()
    first = backend_pid(wrapper)
    wrapper.connection.ping(True)
    wrapper.close()
    assert backend_pid(wrapper) != first
    wrapper.connection.ping()
    again = backend_pid(wrapper)
    wrapper.close()
    assert backend_pid(wrapper) == again


@holds
@pytest.mark.parametrize("name", ["", OTHER_DATABASE])
def test_a_reset_knows_the_drivers_older_names(make_alias, name):
    wrapper = make_alias(NAME=name, options={"db": DATABASE})
    settings = wrapper.settings_dict
    settings["OPTIONS"]["passwd"], settings["PASSWORD"] = settings["PASSWORD"], ""
    pid, ((database,),) = backend_pid(wrapper), fetch(wrapper, "SELECT DATABASE()")
    assert database == (name or DATABASE if DRIVER == "pymysql" else DATABASE)
    fetch(wrapper, "SELECT @a := 1")
    wrapper.close()
    assert (backend_pid(wrapper), fetch(wrapper, "SELECT DATABASE(), @a")) == (pid, [(database, None)])


@holds
def test_a_dirty_one_keeps_its_connection(make_alias):
    wrapper = make_alias()
    first = backend_pid(wrapper)
    wrapper.connection.select_db(OTHER_DATABASE)
    wrapper.close()
    assert backend_pid(wrapper) == first


@holds
def test_what_the_package_itself_asks_is_no_dirt(make_alias):
    wrapper = make_alias(pool={"ping_after": 0})
    for _ in range(3):
        with default_connection.execute_wrapper(lambda execute, *args: execute(*args)):
            fetch(wrapper, "SELECT 1")
        wrapper.set_autocommit(False)
        wrapper.set_autocommit(True)
        assert wrapper.is_usable()
        session = wrapper.lease.session
        assert session.ask(b"DO 0") is not None
        assert not session.is_dirty
        wrapper.close()


def test_a_closed_connection_is_not_kept_by_what_watches_it(make_alias):
    wrapper = make_alias()
    wrapper.ensure_connection()
    connection = ref(wrapper.connection)
    gc.collect()
    gc.disable()
    try:
        wrapper.lease.is_broken = True
        wrapper.close()
        assert connection() is None
    finally:
        gc.enable()


@holds
class TestMemory:
    SIZE = 3_000_000

    def referred(self, start: object) -> int:
        """The size of the longest text that can be reached from an object, through objects of ours."""
        longest, found, seen_ids = 0, [start], set()
        while found:
            it = found.pop()
            if id(it) in seen_ids or isinstance(it, type) or type(it).__name__ in {"module", "function"}:
                continue
            seen_ids.add(id(it))
            if isinstance(it, (str, bytes, bytearray)):
                longest = max(longest, len(it))
            elif type(it).__module__.startswith(("django_mysqlpool", "MySQLdb", "pymysql")) or type(it) in {
                dict,
                list,
                tuple,
            }:
                found.extend(gc.get_referents(it))
        return longest

    @pytest.mark.parametrize("sql", ["SET @a = '{}'", "SELECT @a, '{}'", "SELECT LENGTH('{}')", "SELECT '{}"])
    def test_an_idle_session_keeps_no_text(self, make_alias, observer, sql):
        wrapper = make_alias()
        wrapper.ensure_connection()
        lease = wrapper.lease
        with wrapper.cursor() as cursor:
            try:
                cursor.execute(sql.format("x" * self.SIZE))
                cursor.fetchall()
            except Exception as error:
                del error
        del cursor
        sys.exc_info()
        fetch(wrapper, "SELECT 1")
        assert lease.session.history.dirtied_by in {None, "SET", "SELECT"}
        session = lease.session
        wrapper.close()
        assert session.lease is None
        assert self.referred(session) < 1000
        assert lease.statement is None
        assert pool_status()[wrapper.pool.name]["out"] == 0

    def test_nor_does_a_lease_that_somebody_keeps(self, make_alias):
        wrapper = make_alias()
        wrapper.ensure_connection()
        lease = wrapper.lease
        fetch(wrapper, "SELECT '" + "x" * self.SIZE + "'")
        wrapper.close()
        assert lease.is_returned
        assert lease.statement is None
