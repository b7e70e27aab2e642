"""Cursors that are watched: each statement is judged before it is sent, and none is sent after its lease has ended."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from .lease import Lease
from .statements import CALL, Judgement, judge


@cache
def watched(cursor_class: type, *mixins: type) -> type:
    """A cursor class like ``cursor_class``, with the ``mixins`` of its driver, that is watched.

    Given to the driver as its ``cursorclass``, it sees Django's statements and those of raw cursors alike.
    """
    return type(f"Watched{cursor_class.__name__}", (_Watched, *mixins, cursor_class), {})


class _Watched:
    #: The driver's, which takes it from here; ``None``, as after ``close()``, once it is known to be somebody else's.
    connection: Any
    _lease: Lease | None = None
    _is_judged = False
    #: The driver's own code is at work, and may call the methods here.
    _is_inside = False
    _may_have_more = False

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)  # type: ignore[call-arg]
        session = getattr(connection, "mysqlpool_session", None)
        if session is not None:
            self._lease = session.lease

    def execute(self, query: Any, args: Any = None) -> Any:
        lease = self._lease
        if self._is_judged or lease is None:
            return super().execute(query, args)  # type: ignore[misc]
        return self._send(lease, query, judge(query), super().execute, query, args)  # type: ignore[misc]

    def executemany(self, query: Any, args: Any) -> Any:
        lease = self._lease
        if lease is None:
            return super().executemany(query, args)  # type: ignore[misc]
        # The driver's executemany() calls execute() with texts that hold the rows; it is the template that is judged.
        self._is_judged = True
        try:
            return self._send(lease, query, judge(query), super().executemany, query, args)  # type: ignore[misc]
        finally:
            self._is_judged = False

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        lease = self._lease
        if lease is None:
            return super().callproc(procname, args)  # type: ignore[misc]
        return self._send(lease, "CALL", CALL, super().callproc, procname, args)  # type: ignore[misc]

    def _discard(self) -> None:
        """Read what is left of answers.

        The driver gives up the GIL to ask for the next one, twice for each statement. Where it can tell that there is none,
        it need not ask: the threads of a busy process change places less often.
        """
        connection = self.connection
        more_results = None if self._lease is None or connection is None else self._lease.session.more_results
        if more_results is None or more_results():
            super()._discard()  # type: ignore[misc]
            return
        self.connection = None
        try:
            super()._discard()  # type: ignore[misc]
        finally:
            self.connection = connection

    def nextset(self) -> Any:
        lease = self._lease
        if self._is_inside or lease is None:
            return super().nextset()  # type: ignore[misc]
        try:
            with lease.use:
                if lease.is_over and lease.is_shared and self.connection is not None:
                    return None  # what has more results is not given back
                self.leave_what_is_over()
                more = super().nextset()  # type: ignore[misc]
                more_results = lease.session.more_results
                self._may_have_more = bool(more) and (more_results is None or more_results())
                lease.is_busy = self._may_have_more or self._has_unread_rows()
                return more
        finally:
            if lease.is_wanted_back:
                lease.settle()

    def leave_what_is_over(self) -> None:
        """Be closed, as the driver sees it, where the connection was given back."""
        if self._lease is not None and self._lease.is_over:
            self.connection = None

    def _has_unread_rows(self) -> bool:
        """Whether rows are still with the server: an unbuffered cursor reads them as they are fetched."""
        result = self._result  # type: ignore[attr-defined]
        return result is not None and self._lease is not None and self._lease.session.driver.has_unread_rows(result)

    def _share(self, lease: Lease, judgement: Judgement) -> Lease:
        """The lease to send a statement on, where the connection may have gone back after the last one."""
        if lease.is_over and self.connection is not None:
            lease = self._take_again(lease)
        wrapper = lease.wrapper()
        if wrapper is not None:
            wrapper.must_reach_previous(lease, judgement)
        return lease

    def _take_again(self, lease: Lease) -> Lease:
        wrapper = lease.wrapper()
        if wrapper is None:
            return lease
        with wrapper.use:
            wrapper.ensure_connection()
            taken = wrapper._lease
            assert taken is not None
            taken.is_busy = True  # about to be used
            self._lease, self.connection = taken, wrapper.connection
            return taken

    def close(self) -> None:
        lease = self._lease
        if lease is None:
            super().close()  # type: ignore[misc]
            return
        with lease.use:
            self.leave_what_is_over()
            super().close()  # type: ignore[misc]
            lease.is_busy = False
        if lease.is_wanted_back:
            lease.settle()

    def _send(self, lease: Lease, statement: object, judgement: Judgement, send: Any, *args: Any) -> Any:
        if lease.is_shared:
            lease = self._share(lease, judgement)
        lease.statement = statement
        session = lease.session
        try:
            with lease.use:
                self.leave_what_is_over()
                if judgement.verdict and not lease.is_over:
                    session.note(judgement.verdict, statement)
                self._may_have_more = False
                try:
                    answer = send(*args)
                    more_results = session.more_results
                    self._may_have_more = not judgement.is_single if more_results is None else more_results()
                    if lease.run is not None and judgement.sets_last_id:
                        lease.run.last_id = self.lastrowid  # type: ignore[attr-defined]
                    return answer
                except BaseException as error:
                    if not lease.is_over:
                        lease.note_error(error)
                    raise
                finally:
                    if not lease.is_over:
                        lease.is_busy = self._may_have_more or self._has_unread_rows()
                        session.last_used = time.monotonic()
        finally:
            if lease.is_wanted_back:
                lease.settle()
