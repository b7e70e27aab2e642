"""Cursors that are watched: each statement is analysed before it is sent, and none is sent after its lease has ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from threading import get_ident
from time import monotonic
from typing import Any

from django_mysqlpool.mysqlpool.drivers import is_unbuffered
from django_mysqlpool.mysqlpool.pool.connection import Lease
from django_mysqlpool.mysqlpool.pool.states import IDLE, IN_USE, RETURNED
from django_mysqlpool.mysqlpool.statements import CALL, StatementEffects


@cache
def watched(cursor_class: type, *mixins: type) -> type:
    """A cursor class like ``cursor_class``, with the ``mixins`` of its driver, that is watched.

    Given to the driver as its ``cursorclass``, it sees Django's statements and those of raw cursors alike.
    """
    base = type(cursor_class.__name__, (*mixins, cursor_class), {}) if mixins else cursor_class
    unbuffered, discards = is_unbuffered(cursor_class), hasattr(base, "_discard")
    body: dict[str, Any] = {
        "_base": base,
        "__init__": _watched_init(base),
        "execute": _watched_execute(base),
        "close": _watched_close(base, unbuffered=unbuffered, discards=discards),
    }
    if discards:
        body["_discard"] = _watched_discard(base)
    if unbuffered:  # what a buffered cursor fetches it has read already
        body |= {name: _watched_fetch(cursor_class, name) for name in _FETCHES if hasattr(cursor_class, name)}
        body["_is_unbuffered"] = True
    return type(f"Watched{cursor_class.__name__}", (_Watched, base), body)


#: The methods that read rows from the server if the cursor is unbuffered.
_FETCHES = ("fetchone", "fetchmany", "fetchall", "scroll")


def _watched_fetch(cursor_class: type, name: str) -> Callable[..., Any]:
    """A method of an unbuffered cursor that reads from the server."""
    fetch = getattr(cursor_class, name)

    def method(cursor: _Watched, *args: Any, **kwargs: Any) -> Any:
        if cursor._is_inside or cursor._lease is None:
            return fetch(cursor, *args, **kwargs)
        return cursor._read(cursor._lease, fetch, cursor, *args, **kwargs)

    return wraps(fetch)(method)


# The methods that every statement passes. mysqlclient's cursors have a ``__getattr__``, with which Python takes many times
# as long for each look-up in them. So these have the driver's class at hand, and look up as little as they can.


def _watched_init(base: Any) -> Callable[..., None]:
    def init(cursor: _Watched, connection: Any) -> None:
        base.__init__(cursor, connection)
        session = getattr(connection, "mysqlpool_session", None)
        if session is not None:
            cursor._lease = session.lease

    return init


def _watched_execute(base: Any) -> Callable[..., Any]:
    def execute(cursor: _Watched, query: Any, args: Any = None) -> Any:
        lease = cursor._lease
        if lease is None or cursor._is_analysed:
            return base.execute(cursor, query, args)
        return _send(cursor, lease, query, lease.session.analyse(query), base.execute, query, args)

    return wraps(base.execute)(execute)


def _watched_discard(base: Any) -> Callable[..., None]:
    """The method of mysqlclient's that reads what is left of answers.

    It gives up the GIL to ask for the next one, twice for each statement. Where the driver can tell that there is none, it
    need not ask: the threads of a busy process change places less often.
    """

    def discard(cursor: _Watched) -> None:
        lease = cursor._lease
        more_results = None if lease is None else lease.session.observed.more_results
        if more_results is None or more_results():
            base._discard(cursor)
        elif cursor._executed is not None or cursor._result is not None:  # else it is new
            connection, cursor.connection = cursor.connection, None
            try:
                base._discard(cursor)
            finally:
                cursor.connection = connection

    return discard


def _watched_close(base: Any, *, unbuffered: bool, discards: bool) -> Callable[..., None]:
    def close(cursor: _Watched) -> None:
        lease = cursor._lease
        if lease is None:
            base.close(cursor)
            return
        if lease.state == IN_USE or unbuffered:
            cursor._close(lease)
        else:  # nothing of it is with the server, or the connection is another's by now
            cursor.connection = None
            if discards:
                base._discard(cursor)
            base.close(cursor)
        if lease.return_requested:
            lease.return_if_requested()

    return wraps(base.close)(close)


class _Watched:
    #: The driver's class.
    _base: Any
    #: The driver's, which takes it from here; ``None``, as after ``close()``, once it is known to be somebody else's.
    connection: Any
    _executed: Any
    _result: Any
    _lease: Lease | None = None
    _is_analysed = False
    #: It reads rows from the server as they are fetched.
    _is_unbuffered = False
    #: The driver's own code is at work, and may call the methods here.
    _is_inside = False
    #: Of the last error that the pool was told of: what the driver says of it once more, as it closes, is no other.
    _last_error: tuple[Any, ...] | None = None

    def executemany(self, query: Any, args: Any) -> Any:
        lease = self._lease
        if lease is None:
            return self._base.executemany(self, query, args)
        # The driver's executemany() calls execute() with texts that hold the rows; it is the template that is analysed.
        self._is_analysed = True
        try:
            return _send(self, lease, query, lease.session.analyse(query), self._base.executemany, query, args)
        finally:
            self._is_analysed = False

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        lease = self._lease
        if lease is None:
            return self._base.callproc(self, procname, args)
        self._is_inside = True  # the driver's calls nextset()
        try:
            return _send(self, lease, "CALL", CALL, self._base.callproc, procname, args)
        finally:
            self._is_inside = False

    def nextset(self) -> Any:
        lease = self._lease
        if self._is_inside or lease is None:
            return self._base.nextset(self)
        try:
            with lease.use:
                if lease.state == RETURNED and lease.sharing is not None and self.connection is not None:
                    return None  # what has more results is not returned
                more = self._read(lease, self._base.nextset, self)
                if lease.state != RETURNED:
                    more_results = lease.session.observed.more_results
                    may_have_more = bool(more) and (more_results is None or more_results())
                    lease.state = IN_USE if may_have_more or (self._is_unbuffered and self._has_unread_rows()) else IDLE
                return more
        finally:
            if lease.return_requested:
                lease.return_if_requested()

    def _read(self, lease: Lease, read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Have the driver ``read`` what is still with the server, if the connection has not been returned."""
        with lease.use:
            if lease.state == RETURNED:
                self.leave_what_is_over()
                self._get_db()  # type: ignore[attr-defined]  # raises: the rows of an unbuffered cursor know their connection
            self._is_inside = True
            try:
                return read(*args, **kwargs)
            except BaseException as error:
                self._note_error(lease, error)
                raise
            finally:
                self._is_inside = False

    def _note_error(self, lease: Lease, error: BaseException) -> None:
        self._last_error = error.args
        if not lease.is_returned:
            lease.note_error(error)

    def _close(self, lease: Lease) -> None:
        """Close it under the lock, because rows or further answers may be with the server."""
        with lease.use:
            if lease.state == RETURNED:
                self.connection = None
            try:
                self._base.close(self)
            except BaseException as error:
                if error.args != self._last_error:
                    self._note_error(lease, error)
                raise
            finally:
                if lease.state != RETURNED:
                    lease.state = IDLE

    def leave_what_is_over(self) -> None:
        """Be closed, as the driver sees it, if the connection was returned."""
        if self._lease is not None and self._lease.state == RETURNED:
            self.connection = None

    def _has_unread_rows(self) -> bool:
        """True if rows of an unbuffered cursor are still with the server."""
        result = self._result
        return result is not None and self._lease is not None and self._lease.session.driver.has_unread_rows(result)

    def _share(self, lease: Lease, effects: StatementEffects) -> Lease:
        """The lease to send a statement on: the connection may have gone back after the last one."""
        if lease.state == RETURNED and self.connection is not None:
            lease = self._take_again(lease)
        wrapper: Any = lease.borrower()
        if wrapper is not None:
            wrapper.release.sequences.must_reach_previous(lease, effects)
        return lease

    def _take_again(self, lease: Lease) -> Lease:
        wrapper: Any = lease.borrower()
        if wrapper is None:
            return lease
        with wrapper.use:
            wrapper.ensure_connection()
            taken: Lease = wrapper.lease
            assert taken is not None
            taken.state = IN_USE  # it is about to be
            self._lease, self.connection = taken, wrapper.connection
            return taken


def _send(
    cursor: _Watched, lease: Lease, statement: object, effects: StatementEffects, send: Any, what: Any, args: Any
) -> Any:
    """Have the driver send a statement: ``what`` with ``args``."""
    session = None
    try:
        with lease.borrower.use:  # a thread that shares the wrapper returns nothing from here on
            if lease.sharing is not None:
                lease = cursor._share(lease, effects)
            lease.statement = statement
            session = lease.session
            if lease.thread_id != get_ident():
                lease.change_holder()
            if lease.state == RETURNED:
                cursor.connection = None
            else:
                session.is_sending = True
                if effects.on_session:
                    session.note(effects, statement)
            may_have_more = False
            try:
                answer = send(cursor, what, args)
                more_results = session.observed.more_results
                may_have_more = not effects.is_single if more_results is None else more_results()
                if lease.sharing is not None and effects.sets_last_id:
                    lease.sharing.note_last_id(cursor.lastrowid)  # type: ignore[attr-defined]
                return answer
            except BaseException as error:
                cursor._note_error(lease, error)
                raise
            finally:
                if lease.state != RETURNED:
                    session.is_sending = False
                    lease.state = IN_USE if may_have_more or (cursor._is_unbuffered and cursor._has_unread_rows()) else IDLE
                    session.last_used = monotonic()
    finally:
        if session is not None and lease.return_requested:
            lease.return_if_requested()
