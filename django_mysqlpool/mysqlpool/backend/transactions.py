"""``release = "transaction"``: a connection is held while a statement runs, or while a transaction does.

Most of it is done by what there is for the end of a request: each lease is wanted back from its beginning, so its holder
returns it when it is done with a statement or a transaction. Here is what Django must not notice of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db.backends.utils import debug_transaction

from .fast_path import resume
from .pooled import PooledWrapper, forget_connection
from .receivers import note_unscoped
from .scope import Scope, current_scope, on_behalf_of
from .sequences import Sequences

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.drivers.base import Driver
    from django_mysqlpool.mysqlpool.pool.connection import Lease

#: Attributes that Django's connect() resets. A checkout between two statements must leave them as they are.
_TRANSACTION_STATE = (
    "autocommit",
    "in_atomic_block",
    "savepoint_ids",
    "atomic_blocks",
    "needs_rollback",
    "run_on_commit",
    "run_commit_hooks_on_set_autocommit_on",
)


class ClosedConnection:
    """A stand-in for the driver's connection in a block that was closed before its first statement.

    Django keeps the closed connection to the end of the block. Statements on this one raise what they raise on that.
    """

    open = False

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def cursor(self, cursor_class: type | None = None) -> Any:
        return (cursor_class or self._driver.cursor_class)(self)

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._driver.closed_error()


class TransactionRelease:
    """What a wrapper's connection may do between two statements, and what Django must not notice of it.

    Django connects before a transaction. Here that is deferred: Django's state is reset at once, as in its ``connect()``,
    and the connection is checked out for the first statement.
    """

    def __init__(self) -> None:
        #: ``hold_connection`` blocks that are open.
        self.holds = 0
        #: A deferred transaction: begun for Django, not yet on the server. Its first statement begins it there.
        self.is_deferred = False
        #: The scope that a deferred transaction, or other state of Django's, belongs to while no lease does.
        self.scope: Scope | None = None
        self.sequences = Sequences()

    @property
    def has_deferred(self) -> bool:
        """True if Django's state is other than a new connection's, while there is none."""
        return self.is_deferred or self.scope is not None

    # What Django asks for

    def connect(self, wrapper: PooledWrapper) -> bool:
        """Connect as far as Django's state goes, if no connection is checked out.

        :returns: ``False`` if Django must go on as always: it has a connection, or it must connect, or refuse to.
        """
        if wrapper.connection is not None or wrapper.lease is not None or not wrapper.settings_dict["AUTOCOMMIT"]:
            return False
        if not wrapper.is_parked:
            if wrapper.in_atomic_block and wrapper.closed_in_transaction:
                return False
            hooks, must_run = wrapper.run_on_commit, wrapper.run_commit_hooks_on_set_autocommit_on
            forget_connection(wrapper)
            if hooks and must_run:  # Django's connect() runs them when it sets autocommit
                wrapper.run_on_commit, wrapper.run_commit_hooks_on_set_autocommit_on = hooks, True
                run_waiting_hooks(wrapper)
                wrapper.run_on_commit = []
        return True

    def knows_autocommit(self, wrapper: PooledWrapper) -> bool:
        """True if the wrapper's ``autocommit`` is right without a connection."""
        self._leave_block_of_other_work(wrapper)
        return self.connect(wrapper)

    def set_autocommit(self, wrapper: PooledWrapper, autocommit: bool) -> bool:
        """Begin or end a transaction as far as Django's state goes.

        :returns: ``False`` if Django must go on as always
        """
        wrapper.validate_no_atomic_block()
        if not self.connect(wrapper):
            return False
        if autocommit:
            # A transaction without a statement has been committed.
            wrapper.autocommit, self.is_deferred = True, False
            run_waiting_hooks(wrapper)
            if not _has_leftover_state(wrapper):
                self.scope = None
        elif not self.is_deferred:
            # First this: an interrupt must not leave a transaction that nobody ends.
            self._remember_scope(wrapper, current_scope())
            wrapper.autocommit, self.is_deferred = False, True
        return True

    def keeps_connection(self, wrapper: PooledWrapper) -> bool:
        """True if to close the wrapper would end a transaction, or lose other state of Django's."""
        return self.is_deferred or _has_leftover_state(wrapper)

    def close(self, wrapper: PooledWrapper, close: Callable[[], None]) -> None:
        """Have Django ``close`` the wrapper."""
        if wrapper.is_parked:
            wrapper.validate_thread_sharing()
            wrapper.is_parked = self.is_deferred = False
            if wrapper.in_atomic_block:
                wrapper.connection = ClosedConnection(wrapper.driver)
            else:
                self.scope = None
        close()
        self.sequences.end_current()

    def checkout(self, wrapper: PooledWrapper, connect: Callable[[], None]) -> bool:
        """Check a connection out if Django believes to have one; begin a deferred transaction on it.

        :param connect: Django's own way
        :returns: ``False`` if Django must connect as always
        """
        self._leave_block_of_other_work(wrapper)
        if not wrapper.is_parked or wrapper.connection is not None:
            return False
        with wrapper.use:
            state = {name: wrapper.__dict__[name] for name in _TRANSACTION_STATE}
            scope, is_deferred = self.scope, self.is_deferred
            # Django's connect() sets autocommit, which it refuses in a block, and runs hooks that wait for that.
            wrapper.in_atomic_block = wrapper.run_commit_hooks_on_set_autocommit_on = False
            wrapper.run_on_commit = []
            try:
                with on_behalf_of(scope if is_deferred else current_scope()):
                    if not (self.has_deferred and resume(wrapper)):
                        connect()
                if is_deferred:
                    with debug_transaction(wrapper, "BEGIN"):
                        wrapper._set_autocommit(False)  # type: ignore[attr-defined]  # noqa: SLF001 (no public one sends just this)
                self.is_deferred, self.scope = False, None
            except BaseException:
                wrapper.close()
                wrapper.is_parked, self.is_deferred, self.scope = True, is_deferred, scope
                raise
            finally:
                wrapper.__dict__.update(state)
        return True

    # Scopes: the end of one resets Django's state, though it has no lease that would lead to this wrapper.

    def _remember_scope(self, wrapper: PooledWrapper, scope: Scope | None) -> None:
        self.scope = scope
        if scope is None:
            note_unscoped()
        else:
            scope.blocks.add(wrapper)

    def note_parked(self, wrapper: PooledWrapper, lease: Lease) -> None:
        """The connection was checked in between two statements."""
        if _has_leftover_state(wrapper):
            self._remember_scope(wrapper, lease.scope)

    def leave_block(self, wrapper: PooledWrapper) -> bool:
        """Reset Django's state if its scope has ended; ``False``: another thread has to."""
        deferred = self.scope
        if deferred is None or not deferred.has_ended or wrapper.lease is not None:
            return True
        if not wrapper.is_of_this_thread():
            return False
        forget_connection(wrapper)
        return True

    def _leave_block_of_other_work(self, wrapper: PooledWrapper) -> None:
        """Reset Django's state if this thread has gone on to other work since."""
        deferred = self.scope
        if deferred is None:
            return
        scope = current_scope()
        if deferred.contains(scope) or not (deferred.has_ended or scope is not None):
            return
        if wrapper.lease is None and wrapper.is_of_this_thread():
            forget_connection(wrapper)

    # Pins: what keeps a connection with its thread.

    def is_pinned(self, wrapper: PooledWrapper, lease: Lease) -> bool:
        """True if the connection has to stay between statements, though nothing is being done with it."""
        if lease.sharing is None or (lease.scope is not None and lease.scope.has_ended):
            return False
        return self.holds > 0 or not wrapper.autocommit or lease.session.is_dirty

    def note_pin(self, wrapper: PooledWrapper, lease: Lease) -> None:
        """Count a lease that stays, once, by the reason: what a person can look for in the code."""
        sharing = lease.sharing
        if sharing is None or sharing.is_pinned or self.holds or not wrapper.autocommit:
            return
        sharing.is_pinned = True
        session = lease.session
        lease.pool.statistics.note_pin(session.history.dirtied_by or "unknown" if session.is_dirty else "unread result")


def run_waiting_hooks(wrapper: PooledWrapper) -> None:
    """Run the hooks that wait for autocommit after ``commit()``, as Django's ``set_autocommit(True)`` does."""
    if wrapper.run_commit_hooks_on_set_autocommit_on:
        wrapper.run_and_clear_commit_hooks()
        wrapper.run_commit_hooks_on_set_autocommit_on = False


def _has_leftover_state(wrapper: PooledWrapper) -> bool:
    """True if Django's state differs from a new connection's, though no transaction is open.

    Hooks remain after ``set_autocommit(True)`` without ``commit()``, and ``needs_rollback`` after a manual transaction.
    """
    return bool(wrapper.run_on_commit or wrapper.needs_rollback)
