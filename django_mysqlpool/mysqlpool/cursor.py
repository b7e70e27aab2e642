"""Cursors that are watched: each statement is judged before it is sent, and none is sent after its lease has ended."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from .lease import Lease
from .statements import Verdict, judge


@cache
def watched(cursor_class: type, *mixins: type) -> type:
    """A cursor class like ``cursor_class``, with the ``mixins`` of its driver, that is watched.

    Given to the driver as its ``cursorclass``, it sees Django's statements and those of raw cursors alike.
    """
    return type(f"Watched{cursor_class.__name__}", (_Watched, *mixins, cursor_class), {})


def _is_several(statement: object) -> bool:
    """Whether further results may follow the first, until ``nextset()`` has said that there is none."""
    if isinstance(statement, (bytes, bytearray)):
        return b";" in statement
    return isinstance(statement, str) and ";" in statement


class _Watched:
    _connection: Any = None
    _lease: Lease | None = None
    _is_judged = False
    #: The driver's own code is at work, and may call the methods here.
    _is_inside = False
    _may_have_more = False

    @property
    def connection(self) -> Any:
        """The driver's connection, which it takes from here; ``None``, as after ``close()``, once it is somebody else's."""
        lease = self._lease
        return self._connection if lease is None or not lease.is_over else None

    @connection.setter
    def connection(self, connection: Any) -> None:
        if connection is not None:
            session = getattr(connection, "mysqlpool_session", None)
            self._lease = session.lease if session is not None else None
        self._connection = connection

    def execute(self, query: Any, args: Any = None) -> Any:
        if self._is_judged:
            return super().execute(query, args)  # type: ignore[misc]
        lease = self._lease_for(query)
        if lease is None:
            return super().execute(query, args)  # type: ignore[misc]
        return self._send(lease, judge(query), super().execute, query, args)  # type: ignore[misc]

    def executemany(self, query: Any, args: Any) -> Any:
        lease = self._lease_for(query)
        if lease is None:
            return super().executemany(query, args)  # type: ignore[misc]
        # The driver's executemany() calls execute() with texts that hold the rows; it is the template that is judged.
        self._is_judged = True
        try:
            return self._send(lease, judge(query), super().executemany, query, args)  # type: ignore[misc]
        finally:
            self._is_judged = False

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        lease = self._lease_for("CALL")
        if lease is None:
            return super().callproc(procname, args)  # type: ignore[misc]
        return self._send(lease, Verdict.DIRTY, super().callproc, procname, args)  # type: ignore[misc]

    def nextset(self) -> Any:
        if self._is_inside:
            return super().nextset()  # type: ignore[misc]
        if self._connection is not None and self._is_between_statements():
            return None  # what has more results is not given back
        lease = self._lease
        if lease is None or lease.is_over:
            return super().nextset()  # type: ignore[misc]
        try:
            with lease.use:
                more = super().nextset()  # type: ignore[misc]
                lease.is_busy = self._has_unread_rows(lease) or bool(more and self._may_have_more)
                return more
        finally:
            if lease.is_wanted_back:
                lease.settle()

    def _has_unread_rows(self, lease: Lease) -> bool:
        """An unbuffered cursor reads its rows from the server while they are fetched."""
        result = self._result  # type: ignore[attr-defined]
        return result is not None and lease.session.driver.has_unread_rows(result)

    def _lease_for(self, statement: object) -> Lease | None:
        """The lease to send a statement on; ``None`` where the connection is not pooled."""
        lease = self._lease
        if lease is None:
            return None
        if lease.is_shared:
            if lease.is_over and self._connection is not None:
                lease = self._take_again(lease)
            wrapper = lease.wrapper()
            if wrapper is not None:
                wrapper.must_reach_previous(lease, statement)
        lease.statement = statement
        return lease

    def _is_between_statements(self) -> bool:
        """Whether the connection went back after the last statement, and the next one is to take another."""
        lease = self._lease
        return lease is not None and lease.is_over and lease.is_shared

    def _take_again(self, lease: Lease) -> Lease:
        wrapper = lease.wrapper()
        if wrapper is None:
            return lease
        with wrapper.use:
            wrapper.ensure_connection()
            self.connection = wrapper.connection
            if self._lease is not None:
                self._lease.is_busy = True  # about to be used
                return self._lease
        return lease

    def close(self) -> None:
        lease = self._lease
        if lease is None or lease.is_over:
            super().close()  # type: ignore[misc]
            return
        with lease.use:
            super().close()  # type: ignore[misc]
            lease.is_busy = False
        if lease.is_wanted_back:
            lease.settle()

    def _send(self, lease: Lease, verdict: Verdict, send: Any, *args: Any) -> Any:
        session, statement = lease.session, lease.statement
        try:
            with lease.use:
                if verdict and not lease.is_over:
                    session.note(verdict, statement)
                session.sent += 1
                try:
                    return send(*args)
                except BaseException as error:
                    if not lease.is_over:
                        lease.note_error(error)
                    raise
                finally:
                    self._may_have_more = ";" in statement if type(statement) is str else _is_several(statement)
                    result = self._result  # type: ignore[attr-defined]
                    lease.is_busy = self._may_have_more or (result is not None and session.driver.has_unread_rows(result))
                    if not lease.is_over:
                        session.last_used = time.monotonic()
        finally:
            if lease.is_wanted_back:
                lease.settle()
