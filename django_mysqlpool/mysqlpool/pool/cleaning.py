"""The end of a borrower's use of a session: nothing of it is left to the next one."""

from __future__ import annotations

import time

from .borrowing import Borrower, LeaseStatistics
from .connection import Session
from .states import DIRTY, UNSALVAGEABLE


def clean(session: Session, borrower: Borrower, always_reset: bool, statistics: LeaseStatistics) -> bool:
    """Leave nothing of this borrower's in the session. Errors of the driver go up: the connection must be closed then.

    :param borrower: tells how to connect if it is to be reset
    :param always_reset: even if nothing is known to be left
    :param statistics: is told how many seconds a reset has taken, and the kind of statement that made it necessary
    :returns: ``False`` if only closing it does that; the session's history has the reason
    """
    observed = session.observed
    if not observed.has_its_cursor_class():
        session.history.note_end("unsalvageable")
        return False
    session.is_sending = False  # which an interrupt may have kept from being said
    if not observed.is_between_statements():
        session.history.note_end("reset_failed")
        return False
    if session.state >= DIRTY or always_reset:
        if not _reset(session, borrower, statistics):
            session.history.note_end("reset_failed")
            return False
    elif not observed.get_autocommit():
        session.connection.rollback()
    session.last_used = time.monotonic()
    return True


def _reset(session: Session, borrower: Borrower, statistics: LeaseStatistics) -> bool:
    if session.state >= UNSALVAGEABLE:
        session.history.note_end("unsalvageable")
        return False
    # MariaDB Connector/C's mysql_change_user() writes to freed memory if the connection has been cut.
    if not session.socket.is_still_open():
        session.history.note_end("lost")
        return False
    began, reason = time.monotonic(), session.history.dirtied_by if session.is_dirty else None
    if not session.reset(borrower.get_connection_params()):
        return False
    statistics.note_reset(time.monotonic() - began, reason)
    return True
