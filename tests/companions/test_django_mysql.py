"""django-mysql: locks that live in a session, query hints, smart iteration, variables and the cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.db import connection, connections
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_mysqlpool import auto_close_db
from tests.companions import needs
from tests.helpers import backend_pid, status_of
from tests.shop.models import Account

needs("django_mysql")

from django_mysql.apps import install_rewrite_hook, rewrite_hook  # noqa: E402
from django_mysql.cache import MySQLCache  # noqa: E402
from django_mysql.exceptions import TimeoutError as LockTimeout  # noqa: E402
from django_mysql.locks import Lock, TableLock  # noqa: E402
from django_mysql.models import add_QuerySetMixin  # noqa: E402
from django_mysql.status import global_status, session_status  # noqa: E402
from django_mysql.test.utils import override_mysql_variables  # noqa: E402

pytestmark = pytest.mark.companion


@pytest.fixture
def alias(make_alias):
    """An alias with a pool of two."""
    return make_alias(pool={"pool_size": 2, "max_overflow": 0}, at_most=3).alias


@pytest.fixture
def accounts(alias):
    Account.objects.using(alias).bulk_create(Account(name=f"number {n}", balance=n) for n in range(200))
    connections[alias].close()
    yield Account.objects.using(alias)
    Account.objects.using(alias).all().delete()


def holder_of(observer, lock: Lock) -> int | None:
    """The server's id of the connection that has a lock."""
    ((holder,),) = observer.query("SELECT IS_USED_LOCK(%s)", lock.name)
    return holder


def is_none_out(alias: str) -> bool:
    return status_of(connections[alias])["out"] == 0


class TestLock:
    def test_it_holds_across_cursors(self, alias, observer):
        """Between its cursors other threads borrow what they can; none of them gets the session with the lock."""
        with auto_close_db():
            lock = Lock("across", using=alias)
            with lock:
                holder = holder_of(observer, lock)
                assert holder is not None
                for _ in range(20):
                    assert holder != in_thread(lambda: backend_pid(connections[alias]))
                    Account.objects.using(alias).count()
                    assert lock.holding_connection_id() == holder == holder_of(observer, lock)
            assert holder_of(observer, lock) is None
        assert is_none_out(alias)

    def test_it_excludes(self, alias):
        """Ten threads add one each, in Python, which only works one at a time."""
        total = [0]

        @auto_close_db
        def add(_):
            with Lock("total", acquire_timeout=30, using=alias):
                seen = total[0]
                Account.objects.using(alias).count()
                total[0] = seen + 1

        with ThreadPoolExecutor(10) as executor:
            list(executor.map(add, range(50)))
        assert total == [50]
        assert is_none_out(alias)

    def test_another_waits_in_vain(self, alias):
        with auto_close_db(), Lock("wanted", using=alias), pytest.raises(LockTimeout):
            in_thread(Lock("wanted", acquire_timeout=0.1, using=alias).acquire)
        assert is_none_out(alias)

    def test_one_that_is_forgotten_ends_with_the_work(self, alias, observer):
        lock = Lock("forgotten", using=alias)
        with auto_close_db():
            lock.acquire()
            assert holder_of(observer, lock) is not None
        assert is_none_out(alias)
        assert holder_of(observer, lock) is None
        in_thread(Lock("forgotten", acquire_timeout=0, using=alias).acquire)


def in_thread(action):
    """Do it as a piece of work of another thread's."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(auto_close_db(action)).result()


class TestTableLock:
    def test_it_holds_until_its_end(self, accounts, alias, observer):
        with auto_close_db():
            with TableLock(write=[Account], using=alias):
                accounts.filter(name="number 1").update(balance=-1)
                assert in_use(observer) == 1
            assert in_use(observer) == 0
            assert accounts.get(name="number 1").balance == -1
        assert is_none_out(alias)

    def test_one_that_is_forgotten_ends_with_the_work(self, accounts, alias, observer):
        with auto_close_db():
            TableLock(write=[Account], using=alias).acquire()
            assert in_use(observer) == 1
        assert is_none_out(alias)
        assert in_use(observer) == 0
        assert connections[alias].get_autocommit()

    def test_not_in_a_transaction(self, accounts, alias):
        with auto_close_db(), pytest.raises(TransactionManagementError):
            connections[alias].set_autocommit(False)
            TableLock(read=[Account], using=alias).acquire()
        assert is_none_out(alias)


def in_use(observer) -> int:
    """How many handles of the accounts' table statements or locks have open."""
    rows = observer.query("SHOW OPEN TABLES LIKE 'shop_account'")
    return sum(row[2] for row in rows)


@pytest.fixture
def installed():
    """As an installed application, which rewrites queries: its hook is put on each wrapper that connects."""
    with (
        override_settings(DJANGO_MYSQL_REWRITE_QUERIES=True),
        override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "django_mysql"]),
    ):
        yield
    connection_created.disconnect(install_rewrite_hook)
    for wrapper in connections.all(initialized_only=True):
        if rewrite_hook in wrapper.execute_wrappers:
            wrapper.execute_wrappers.remove(rewrite_hook)


class TestQuerySetMixin:
    def test_hints_reach_the_server(self, installed, accounts, alias):
        """In each thread, on the first checkout and on a warm one."""

        @auto_close_db
        def ask():
            with CaptureQueriesContext(connections[alias]) as queries:
                found = list(
                    add_QuerySetMixin(accounts).label("hinted").straight_join().use_index("PRIMARY").filter(balance=7)
                )
            assert [account.name for account in found] == ["number 7"]
            return queries[-1]["sql"]

        ask()
        for sql in (ask(), in_thread(ask)):
            assert sql.startswith("SELECT /*hinted*/ STRAIGHT_JOIN `shop_account`.`id`")
            assert "USE INDEX (`PRIMARY`)" in sql
        assert is_none_out(alias)

    def test_hints_keep_a_session_clean(self, installed, accounts, alias):
        accounts.count()
        (session,) = connections[alias].pool.sessions
        list(add_QuerySetMixin(accounts).label("it's").sql_big_result().force_index("PRIMARY")[:3])
        assert not session.is_dirty, session.history.dirtied_by

    def test_found_rows(self, installed, accounts, alias):
        """``FOUND_ROWS()`` asks the session about its last statement, which must be the one that counted."""
        with auto_close_db():
            queryset = add_QuerySetMixin(accounts).sql_calc_found_rows()[:3]
            assert len(queryset) == 3
            assert queryset.found_rows == 200

    def test_approx_count(self, installed, accounts, alias):
        with auto_close_db():
            connections[alias].cursor().execute("ANALYZE TABLE shop_account")
            assert add_QuerySetMixin(accounts.all()).approx_count() > 100
        assert is_none_out(alias)

    def test_smart_iteration(self, installed, accounts, alias):
        """Each chunk is a query of its own, in a transaction of its own if it shall be."""
        for options in ({}, {"atomically": False}):
            with auto_close_db():
                chunks = add_QuerySetMixin(accounts.all()).iter_smart_chunks(chunk_size=30, chunk_max=30, **options)
                assert sum(len(chunk) for chunk in chunks) == 200
        assert is_none_out(alias)

    def test_one_that_is_left_early(self, installed, accounts, alias):
        with auto_close_db():
            assert next(iter(add_QuerySetMixin(accounts.all()).iter_smart(chunk_size=10))).balance == 0
        assert is_none_out(alias)


def test_the_checks_of_variables(installed, alias):
    run_checks(databases=[alias])
    connections[alias].close()
    assert is_none_out(alias)


def test_status(alias):
    with auto_close_db():
        assert global_status.get("Threads_connected") >= 1
        assert session_status.get_many(["Com_select", "Com_insert"]).keys() == {"Com_select", "Com_insert"}
    assert status_of(connection)["out"] == 0


def test_overridden_variables_hold_and_end(alias, observer):
    def timeout() -> int:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT @@lock_wait_timeout")
            return cursor.fetchone()[0]

    usual = timeout()
    with auto_close_db():
        with override_mysql_variables(using=alias, lock_wait_timeout=77):
            assert timeout() == 77
            assert in_thread(timeout) == usual
        assert timeout() == usual
        override_mysql_variables(using=alias, lock_wait_timeout=78).enable()  # and never disabled
    for _ in range(3):
        assert timeout() == usual


def test_the_cache(installed, observer):
    """Its statements are INSERT ... ON DUPLICATE KEY and SELECT; what 8 threads add must be all there."""
    observer.query(f"USE {connection.settings_dict['NAME']}")
    observer.query(MySQLCache.create_table_sql.format(table_name="cache_of_test"))
    try:
        cache = MySQLCache("cache_of_test", {"TIMEOUT": 60})
        cache.set("total", 0)
        here = threading.Barrier(8)

        @auto_close_db
        def work(number):
            here.wait(30)
            cache.set(f"number-{number}", "x" * 10_000)
            assert cache.get_many([f"number-{number}", "none"]) == {f"number-{number}": "x" * 10_000}
            cache.incr("total")

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))
        assert cache.get("total") == 8
        assert cache.add("new", 1)
        assert not cache.add("new", 2)
        connection.close()
        assert status_of(connection)["out"] == 0
    finally:
        observer.query("DROP TABLE cache_of_test")


class _Router:
    """Sends the cache's table to one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias

    db_for_write = db_for_read


def test_adding_to_the_cache_sets_a_user_variable(installed, make_alias, observer):
    """The other methods keep a session clean; ``add()`` has ``@tmp_now`` in its statement, which pins."""
    alias = make_alias(pool={"release": "transaction"}).alias
    observer.query(f"USE {connections[alias].settings_dict['NAME']}")
    observer.query(MySQLCache.create_table_sql.format(table_name="cache_of_adds"))
    try:
        with override_settings(DATABASE_ROUTERS=[_Router(alias)]), auto_close_db():
            cache = MySQLCache("cache_of_adds", {"TIMEOUT": 60})
            cache.set("key", 1)
            assert cache.get("key") == 1
            cache.incr("key")
            cache.delete("key")
            assert status_of(connections[alias])["pins"] == {}
            assert cache.add("other", 2)
            assert not cache.add("other", 3)
            assert status_of(connections[alias])["pins"] == {"INSERT": 1}
        assert is_none_out(alias)
    finally:
        observer.query("DROP TABLE cache_of_adds")
