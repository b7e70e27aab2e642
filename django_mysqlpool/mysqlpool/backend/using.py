"""What is seen to before and after a wrapper's holder uses its connection."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

from django.db import Error

from .pooled import PooledWrapper
from .scope import current_scope

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease


R = TypeVar("R")


def use(wrapper: PooledWrapper, action: Callable[[], R]) -> R:
    """Hold the connection during ``action``, and tell the pool of errors that no cursor tells it of."""
    with wrapper.use:
        lease = wrapper.lease
        if lease is None:
            drop_what_is_not_ours(wrapper)
        elif lease.thread_id != get_ident():
            lease.change_holder()
        try:
            return action()
        except BaseException as error:
            if wrapper.lease is not None:
                # The driver's own, which Django has wrapped.
                wrapper.lease.note_error(error.__cause__ if isinstance(error, Error) and error.__cause__ else error)
            raise


def drop_what_is_not_ours(wrapper: PooledWrapper) -> None:
    """Forget a connection that has gone back, if an interrupt kept its checkin from doing that.

    Inside ``atomic()`` it is a closed one, which Django keeps until the block ends.
    """
    with wrapper.use:
        has_lease = wrapper.lease is not None  # a thread that shares the wrapper may have just connected
        if not (has_lease or wrapper.pool_options is None or wrapper.in_atomic_block):
            wrapper.connection = None


def recheck(wrapper: PooledWrapper, lease: Lease) -> None:
    """Before a statement, return a connection that has died; not in a transaction, which would lose its beginning.

    Nor does a session that may hold something of its borrower's, a lock or a variable, make way for another in silence:
    it takes the error of its next statement to tell.
    """
    # The look may be a ping: nobody may take the connection while its answer is outstanding.
    with wrapper.use:
        if wrapper.lease is not lease or wrapper.in_atomic_block or not wrapper.autocommit:
            return
        if lease.is_broken or not (lease.session.is_dirty or lease.state or _is_alive(lease)):
            lease.invalidate("lost")
            wrapper.close()


def _is_alive(lease: Lease) -> bool:
    try:
        return lease.pool.liveness.is_alive(lease.session)
    except BaseException:  # an interrupt
        lease.invalidate("interrupted")
        raise


def leave_other_work(wrapper: PooledWrapper, lease: Lease) -> None:
    """Return, rolled back, what this thread still has of a piece of work that it no longer does.

    Code in no scope may be part of that work, in a context of its own: it leaves an open transaction alone.
    """
    assert lease.scope is not None
    scope = current_scope()
    if not lease.scope.contains(scope):
        wrapper.check_in_if_idle(lease, by_force=lease.scope.has_ended or scope is not None)
