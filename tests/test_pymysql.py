"""What is PyMySQL's alone. What both drivers must do, the other modules test, with ``MYSQLPOOL_TEST_DRIVER=pymysql``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from MySQLdb.cursors import SSCursor

from django_mysqlpool.mysqlpool import compat
from tests import DRIVER
from tests.helpers import backend_pid, status_of

pytestmark = pytest.mark.driver

with_pymysql = pytest.mark.skipif(DRIVER != "pymysql", reason="about PyMySQL")
MANY_ROWS = "SELECT a.help_topic_id FROM mysql.help_topic a, mysql.help_topic b"

AFTER_THE_IMPORT = """
import sys
import django_mysqlpool, django_mysqlpool.middleware
assert not {"MySQLdb", "pymysql"} & set(sys.modules)
import pymysql
pymysql.install_as_MySQLdb()
import django
django.setup()
from django.db import connection
connection.ensure_connection()
print(type(connection.connection).__module__, "MySQLdb._mysql" in sys.modules)
"""


def test_it_may_be_chosen_after_the_package_was_imported():
    environment = {**os.environ, "MYSQLPOOL_TEST_DRIVER": "none"}
    command = [sys.executable, "-W", "error", "-c", AFTER_THE_IMPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("pymysql.connections False\n", "")


@with_pymysql
class TestConnecting:
    def test_a_version_without_a_name_that_is_needed_is_refused(self, make_alias, observer, monkeypatch):
        wrapper = make_alias()
        monkeypatch.setattr(compat, "_PYMYSQL", ("_sock", "_of_old"))
        with pytest.raises(ImproperlyConfigured, match=r"PyMySQL [\d.]+: its connections have no _of_old\."):
            wrapper.ensure_connection()
        monkeypatch.undo()
        assert len(observer.connections_of(wrapper.settings_dict["USER"])) <= 1  # the server may not have noticed yet
        assert backend_pid(wrapper)

    def test_a_server_that_never_greets_is_given_up(self, make_alias):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            wrapper = make_alias(options={"connect_timeout": 1}, HOST="127.0.0.1", PORT=silent.getsockname()[1])
            begin = time.monotonic()
            with pytest.raises(OperationalError, match="timed out"):
                wrapper.ensure_connection()
            assert time.monotonic() - begin < 5

    @pytest.mark.parametrize("timeout", [{}, {"read_timeout": 7, "write_timeout": 8}, {"read_timeout": 0}])
    def test_its_own_timeouts_are_what_the_options_say(self, make_alias, timeout):
        wrapper = make_alias(options={"connect_timeout": 1, **timeout})
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT SLEEP(1.2)")  # longer than connecting may take
        driver = wrapper.connection
        read_timeout, write_timeout = timeout.get("read_timeout") or None, timeout.get("write_timeout")
        assert (driver._read_timeout, driver._write_timeout) == (read_timeout, write_timeout)


@with_pymysql
class TestReset:
    def test_keeps_the_connection(self, make_alias):
        wrapper = make_alias()
        first = backend_pid(wrapper)
        with wrapper.cursor() as cursor:
            cursor.execute("SET @a = 1")
        wrapper.close()
        assert backend_pid(wrapper) == first

    def test_without_a_database_to_go_back_to_there_is_none(self, make_alias):
        wrapper = make_alias(NAME="")
        first = backend_pid(wrapper)
        with wrapper.cursor() as cursor:
            cursor.execute("USE mysql")
        wrapper.close()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID() = %s, DATABASE()", [first])
            assert cursor.fetchone() == (0, None)


@with_pymysql
class TestAnUnbufferedCursor:
    def test_that_is_dropped_does_not_read_the_rest(self, make_alias):
        wrapper = make_alias(options={"cursorclass": SSCursor})
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor()
        cursor.execute(MANY_ROWS)
        result = cursor._result
        del cursor
        assert result.unbuffered_active
        wrapper.close()
        assert status_of(wrapper)["open"] == 0

    def test_ends_with_its_lease_and_says_so(self, make_alias):
        wrapper = make_alias(options={"cursorclass": SSCursor})
        wrapper.ensure_connection()
        cursor = wrapper.connection.cursor()
        cursor.execute(MANY_ROWS)
        assert cursor.fetchone()
        wrapper.close()
        with pytest.raises(Exception, match="Cursor closed"):
            cursor.fetchone()
