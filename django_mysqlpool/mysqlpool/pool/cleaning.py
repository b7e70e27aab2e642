"""The end of a borrower's use of a session: nothing of it is left to the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from .connection import Session
from .states import DIRTY, UNSALVAGEABLE


def clean(session: Session, params: Callable[[], Mapping[str, Any]], *, always_reset: bool) -> bool:
    """Leave nothing of this borrower's in the session. Errors of the driver go up: the connection must be closed then.

    :param params: tells the connection parameters, if it is to be reset
    :returns: ``False`` if only closing it does that
    """
    if not session.observed.has_its_cursor_class():
        return False
    session.is_sending = False  # which an interrupt may have kept from being said
    if session.state >= DIRTY or always_reset:
        if not _can_be_reset(session) or not session.reset(params()):
            return False
    elif not session.driver.is_between_statements(session.connection):
        return False
    elif not session.connection.get_autocommit():
        session.connection.rollback()
    session.last_used = time.monotonic()
    return True


def _can_be_reset(session: Session) -> bool:
    return (
        session.state < UNSALVAGEABLE
        and session.driver.is_between_statements(session.connection)
        # MariaDB Connector/C's mysql_change_user() writes to freed memory if the connection has been cut.
        and session.socket.is_still_open()
    )
