"""What the soak has found, each fault by itself; the soak is ``make soak``."""

from __future__ import annotations

import logging
import threading

import pytest
from django.db import OperationalError, connections, transaction


class TestATransactionWhoseConnectionDies:
    @pytest.fixture(params=["plain", "TLS"])
    def connection(self, request, server, make_alias):
        if request.param == "TLS" and server.is_mariadb:
            pytest.skip("the private MariaDB has no certificate")
        return make_alias(options={"ssl_mode": "REQUIRED"} if request.param == "TLS" else {})

    def test_its_end_leaves_the_thread_out_of_it(self, connection, observer):
        """As where ``atomic()`` has committed, and to switch autocommit on again finds the server gone."""
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            observer.query("KILL %s", cursor.fetchone()[0])
        with pytest.raises(OperationalError):
            connection.set_autocommit(True)

        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
        assert connection.get_autocommit()


class TestWhatADeadThreadHeld:
    def test_two_threads_may_find_it_at_once(self, make_alias):
        """As the housekeeper and one that waits do, or two that wait."""
        connection = make_alias()
        alias, pool, kept = connection.alias, connection.pool, []

        def begin() -> None:
            connections[alias].set_autocommit(False)
            kept.append(connections[alias])

        class TheOther(logging.Handler):
            """Takes back, in another thread, while the first one is telling of it."""

            def emit(self, record: logging.LogRecord) -> None:
                logger.removeHandler(self)
                run(pool.reclaim)

        def run(target):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

        logger = logging.getLogger("django_mysqlpool")
        logger.addHandler(TheOther())
        run(begin)
        pool.reclaim()
        assert pool.status()["out"] == 0
