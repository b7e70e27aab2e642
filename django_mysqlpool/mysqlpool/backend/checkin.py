"""How a wrapper returns its connection: at a close, from any thread if it is idle, between two statements."""

from __future__ import annotations

import threading
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from django_mysqlpool.mysqlpool.log import tell, unsaid
from django_mysqlpool.mysqlpool.pool.locks import acquire_if_free
from django_mysqlpool.mysqlpool.pool.states import RETURNED

from .pooled import PooledWrapper, forget_connection, is_in_shared_block

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease


def check_in_lease(wrapper: PooledWrapper, lease: Lease) -> None:
    """Check the connection in, under ``use``; Django's state is left to the caller."""
    wrapper.lease = None
    if wrapper.errors_occurred:
        lease.session.needs_ping = True
    # Inside atomic() Django keeps its reference to the closed connection; nobody else may be lent that one.
    discard = wrapper.in_atomic_block
    lease.pool.checkin(lease, wrapper, discard)


def check_in(wrapper: PooledWrapper) -> None:
    """End the use of the connection, whatever state it was left in; what was left open is rolled back.

    Only a block in which other threads may be stays: that is for their end to close.
    """
    with wrapper.use:
        if is_in_shared_block(wrapper):
            if wrapper.lease is not None:
                wrapper.lease.return_requested = True
            return
        _check_in_now(wrapper)
    if unsaid:
        tell(partial(_check_in_after_handlers, wrapper))


def _check_in_after_handlers(wrapper: PooledWrapper) -> None:
    with wrapper.use:
        _check_in_now(wrapper)


def _check_in_now(wrapper: PooledWrapper) -> None:
    """Check in, under ``use``, whatever state the connection is in."""
    wrapper.in_atomic_block = False
    try:
        if wrapper.lease is not None:
            check_in_lease(wrapper, wrapper.lease)
    finally:
        forget_connection(wrapper)


def tell_closed(wrapper: PooledWrapper) -> None:
    """Log what has been put off until this wrapper is closed; a handler may use it."""
    wrapper.connection = None
    tell(partial(_close_after_handlers, wrapper))


def _close_after_handlers(wrapper: PooledWrapper) -> None:
    with wrapper.use:
        if wrapper.lease is not None:
            check_in_lease(wrapper, wrapper.lease)


def check_in_if_idle(wrapper: PooledWrapper, lease: Lease, by_force: bool = False, may_ask_server: bool = True) -> None:
    """Return the leased connection, from any thread, if nothing is being done with it.

    :param by_force: return it whatever state it is in, if the calling thread is its holder or the holder is dead; but not
        out of a block in which other threads may be
    :param may_ask_server: ``False``: leave it alone if it can't be cleaned without the server
    """
    if may_ask_server and lease.thread_id == get_ident():
        with wrapper.use:  # another thread that has it looks at this connection, or returns it, and is done soon
            _check_in_under_use(wrapper, lease, by_force, may_ask_server)
    else:
        held: list[threading.RLock] = []
        try:
            if acquire_if_free(wrapper.use, held):  # else its holder, when it is done, looks if it is wanted back
                _check_in_under_use(wrapper, lease, by_force, may_ask_server)
        finally:
            for lock in held:
                lock.release()
    if unsaid and may_ask_server:
        tell()


def _check_in_under_use(wrapper: PooledWrapper, lease: Lease, by_force: bool, may_ask_server: bool) -> None:
    """Return the leased connection, under ``use``, if nothing is being done with it."""
    is_its_holder = lease.thread_id == get_ident()  # another thread may have used the connection until now
    is_free = by_force and (is_its_holder or lease.is_of_a_dead_thread()) and not is_in_shared_block(wrapper)
    if lease.state == RETURNED:
        _leave_closed_block(wrapper, lease, is_free)
    elif (may_ask_server or not _needs_server(wrapper, lease)) and (is_free or _is_idle(wrapper, lease)):
        if is_free or lease.sharing is None or (lease.scope is not None and lease.scope.has_ended):
            _check_in_now(wrapper)
        else:
            _park(wrapper, lease)


def _leave_closed_block(wrapper: PooledWrapper, lease: Lease, is_free: bool) -> None:
    """The connection was closed inside an ``atomic()`` block; unless its thread may be in that still, leave it."""
    is_in_block = wrapper.lease is None and wrapper.closed_in_transaction
    if is_in_block and not is_free:
        return
    if is_in_block:
        forget_connection(wrapper)
    if lease.scope is not None:
        lease.scope.discard(lease)


def _needs_server(wrapper: PooledWrapper, lease: Lease) -> bool:
    assert wrapper.pool_options is not None
    return wrapper.pool_options.reset == "always" or lease.session.needs_server_to_clean()


def _is_idle(wrapper: PooledWrapper, lease: Lease) -> bool:
    if wrapper.in_atomic_block or wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
        return False
    release = wrapper.release
    if lease.state or (release is not None and release.is_pinned(wrapper, lease)):
        if release is not None:
            release.note_pin(wrapper, lease)
        return False
    return True


def _park(wrapper: PooledWrapper, lease: Lease) -> None:
    """Check the connection in between two statements, under ``use``. Django believes that it still has one."""
    try:
        check_in_lease(wrapper, lease)
    finally:
        wrapper.connection = None
        wrapper.is_parked = True
    if wrapper.release is not None:
        wrapper.release.note_parked(wrapper, lease)
