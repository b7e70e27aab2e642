"""``release = "transaction"``: a connection is held while a statement runs, or while a transaction does.

Most of it is done by what there is for the end of a request: each lease is wanted back from its beginning, so its holder
returns it when it is done with a statement or a transaction. Here is what Django must not notice of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.utils import debug_transaction

from django_mysqlpool.mysqlpool.errors import PreviousStatementLost
from django_mysqlpool.mysqlpool.statements import StatementEffects

from .scope import Scope, current_scope, on_behalf_of

if TYPE_CHECKING:
    from django.db.backends.mysql.base import DatabaseWrapper as _Base

    from django_mysqlpool.mysqlpool.drivers.base import Driver
    from django_mysqlpool.mysqlpool.options import PoolOptions
    from django_mysqlpool.mysqlpool.pool.connection import Lease
else:
    _Base = object

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


class Sequence:
    """Statements of one wrapper, for one piece of work, on one session, with nobody else's in between.

    It goes on for as long as it is both the wrapper's last one and the session's.
    """

    __slots__ = ("has_begun", "last_id", "scope")

    def __init__(self, scope: ReferenceType[Scope] | None = None) -> None:
        self.scope = scope
        self.has_begun = False
        #: The driver's id of the last statement that may have set ``LAST_INSERT_ID()``; ``None``: there was none.
        self.last_id: int | None = None


#: More than one have set their session's last id.
_SEVERAL = Sequence()


class Sharing:
    """State of a lease that may be returned between statements."""

    __slots__ = ("is_pinned", "sequence")

    def __init__(self) -> None:
        #: The sequence of its statements, from the first one on.
        self.sequence: Sequence | None = None
        #: It stays with its thread between statements, though its return was requested; it has been counted.
        self.is_pinned = False

    def note_last_id(self, last_id: int) -> None:
        """A statement that may have set ``LAST_INSERT_ID()`` was answered."""
        if self.sequence is not None:
            self.sequence.last_id = last_id


class TransactionRelease(_Base):
    """The part of a pooled wrapper that knows when its connection may be somebody else's between two statements."""

    driver: Driver
    pool_options: PoolOptions | None
    lease: Lease | None
    #: No connection is checked out, and Django does not have to know: its state is that of a connected wrapper.
    _is_parked: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: ``hold_connection`` blocks that are open.
        self.holds = 0
        #: A deferred transaction: begun for Django, not yet on the server. Its first statement begins it there.
        self._is_deferred = False
        #: The scope that a deferred transaction, or other state of Django's, belongs to while no lease does.
        self._deferred_scope: Scope | None = None
        self._sequence = Sequence()

    @property
    def releases_per_transaction(self) -> bool:
        """True if the connection goes back between statements."""
        return self.pool_options is not None and self.pool_options.release == "transaction"

    def _note_sharing(self, lease: Lease) -> None:
        """A new lease may be returned between statements."""
        if self.releases_per_transaction:
            lease.sharing = Sharing()

    # Django connects before a transaction. Here that is deferred: Django's state is reset at once, as in its connect(); the
    # connection is checked out for the first statement.

    def _connect_deferred(self) -> bool:
        """Connect as far as Django's state goes, if no connection is checked out.

        :returns: ``False`` if Django must go on as always: it has a connection, or it must connect, or refuse to.
        """
        if self.connection is not None or self.lease is not None or not self.releases_per_transaction:
            return False
        if not self.settings_dict["AUTOCOMMIT"]:
            return False
        if not self._is_parked:
            if self.in_atomic_block and self.closed_in_transaction:
                return False
            hooks, must_run = self.run_on_commit, self.run_commit_hooks_on_set_autocommit_on
            self.forget_connection()  # type: ignore[attr-defined]
            if hooks and must_run:  # Django's connect() runs them when it sets autocommit
                self.run_on_commit, self.run_commit_hooks_on_set_autocommit_on = hooks, True
                self.run_waiting_hooks()
                self.run_on_commit = []
        return True

    def run_waiting_hooks(self) -> None:
        """Run the hooks that wait for autocommit after ``commit()``, as Django's ``set_autocommit(True)`` does."""
        if self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    def get_autocommit(self) -> bool:
        if self._deferred_scope is not None:
            self._leave_block_of_other_work()
        return self.autocommit if self._connect_deferred() else super().get_autocommit()

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        self.validate_no_atomic_block()
        if not self._connect_deferred():
            super().set_autocommit(autocommit, *args, **kwargs)
            return
        if autocommit:
            # A transaction without a statement has been committed.
            self.autocommit, self._is_deferred = True, False
            self.run_waiting_hooks()
            if not self.has_leftover_state():
                self._deferred_scope = None
        elif not self._is_deferred:
            # First this: an interrupt must not leave a transaction that nobody ends.
            self.remember_scope(current_scope())
            self.autocommit, self._is_deferred = False, True

    def has_leftover_state(self) -> bool:
        """True if Django's state differs from a new connection's, though no transaction is open.

        Hooks remain after ``set_autocommit(True)`` without ``commit()``, and ``needs_rollback`` after a manual transaction.
        """
        return bool(self.run_on_commit or self.needs_rollback)

    def remember_scope(self, scope: Scope | None) -> None:
        """Have ``scope`` reset Django's state when it ends; without a lease it would not know this wrapper."""
        self._deferred_scope = scope
        if scope is not None:
            scope.blocks.add(self)

    def close(self) -> None:
        if self._is_parked and self.releases_per_transaction:
            self.validate_thread_sharing()
            self._is_parked = self._is_deferred = False
            if self.in_atomic_block:
                self.connection = ClosedConnection(self.driver)
            else:
                self._deferred_scope = None
        super().close()
        self._sequence = Sequence()

    def close_if_unusable_or_obsolete(self) -> None:
        super().close_if_unusable_or_obsolete()
        if self._is_parked and (
            self._is_deferred or self.has_leftover_state() or self.run_commit_hooks_on_set_autocommit_on
        ):
            self.close()

    def leave_block(self) -> bool:
        """Reset Django's state if its scope has ended; ``False``: another thread has to."""
        deferred_scope = self._deferred_scope
        if deferred_scope is None or not deferred_scope.has_ended or self.lease is not None:
            return True
        if self._thread_ident != get_ident():  # type: ignore[attr-defined]
            return False
        self.forget_connection()  # type: ignore[attr-defined]
        return True

    def _leave_block_of_other_work(self) -> None:
        """Reset Django's state if this thread has gone on to other work since."""
        deferred_scope, scope = self._deferred_scope, current_scope()
        if deferred_scope is None or deferred_scope.contains(scope) or not (deferred_scope.has_ended or scope is not None):
            return
        if self.lease is None and self._thread_ident == get_ident():  # type: ignore[attr-defined]
            self.forget_connection()  # type: ignore[attr-defined]

    def ensure_connection(self) -> None:
        if self._deferred_scope is not None:
            self._leave_block_of_other_work()
        if self._is_parked and self.connection is None and self.releases_per_transaction:
            with self.use:  # type: ignore[attr-defined]
                self._checkout_keeping_state()
        else:
            super().ensure_connection()

    def _checkout_keeping_state(self) -> None:
        """Check a connection out, under ``use``, where Django believes to have one; begin a deferred transaction on it."""
        state = {name: self.__dict__[name] for name in _TRANSACTION_STATE}
        deferred_scope, is_deferred = self._deferred_scope, self._is_deferred
        # Django's connect() sets autocommit, which it refuses in a block, and runs hooks that wait for that.
        self.in_atomic_block = self.run_commit_hooks_on_set_autocommit_on = False
        self.run_on_commit = []
        try:
            with on_behalf_of(deferred_scope if is_deferred else current_scope()):
                if not ((is_deferred or deferred_scope is not None) and self._resume()):  # type: ignore[attr-defined]
                    super().ensure_connection()
            if is_deferred:
                with debug_transaction(self, "BEGIN"):
                    super()._set_autocommit(False)  # type: ignore[misc]
            self._is_deferred, self._deferred_scope = False, None
        except BaseException:
            self.close()
            self._is_parked, self._is_deferred, self._deferred_scope = True, is_deferred, deferred_scope
            raise
        finally:
            self.__dict__.update(state)

    @contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        if not self._is_deferred and not self.has_leftover_state():
            with super().temporary_connection() as cursor:
                yield cursor
            return
        # Django closes a wrapper that it found without a connection, which would end the transaction.
        with self.cursor() as cursor:
            yield cursor

    # Pins: what keeps a connection with its thread.

    def is_pinned(self, lease: Lease) -> bool:
        """True if the connection has to stay between statements, though nothing is being done with it."""
        if lease.sharing is None or (lease.scope is not None and lease.scope.has_ended):
            return False
        return self.holds > 0 or not self.autocommit or lease.session.is_dirty

    def note_pin(self, lease: Lease) -> None:
        """Count a lease that stays, once, by the reason: what a person can look for in the code."""
        sharing = lease.sharing
        if sharing is None or sharing.is_pinned or self.holds or not self.autocommit:
            return
        sharing.is_pinned = True
        session = lease.session
        lease.pool.count_pin(session.history.dirtied_by or "unknown" if session.is_dirty else "unread result")

    # What MySQL ties to the previous statement of a session.

    def must_reach_previous(self, lease: Lease, effects: StatementEffects) -> None:
        """Before a statement, which may ask about the one before it, or about the last INSERT.

        Raises ``PreviousStatementLost`` where that was sent on another session, or others have used this one since.
        """
        sequence, history = lease.sharing.sequence, lease.session.history
        if sequence is None:
            scope = None if lease.scope is None else ref(lease.scope)
            if history.sequence is not self._sequence or scope != self._sequence.scope:
                self._sequence = Sequence(scope)
            lease.sharing.sequence = sequence = self._sequence
        if (effects.asks_about_previous and not sequence.has_begun) or (
            effects.asks_about_last_id and not self._is_last_id_of(sequence, lease, effects)
        ):
            raise PreviousStatementLost(self.alias)
        sequence.has_begun = True
        history.sequence = sequence
        # (After what is dirty the session is reset, and has no last id.)
        if effects.sets_last_id or not (effects.is_single or effects.on_session):
            history.last_id_of = sequence if history.last_id_of in {None, sequence} else _SEVERAL

    def _is_last_id_of(self, sequence: Sequence, lease: Lease, effects: StatementEffects) -> bool:
        """True if the session's last id is of this sequence.

        An INSERT that gives its own id, or whose table numbers nothing, leaves an older one in place. So where others have
        inserted on this session, it is asked which it is; but not where the question is about the previous statement too.
        """
        if sequence.last_id is None or lease.session.history.last_id_of is sequence:
            return sequence.last_id is not None
        if effects.asks_about_previous:
            return False
        with lease.use:
            try:
                rows = lease.session.ask_or_raise(b"SELECT LAST_INSERT_ID()")
            except BaseException as error:
                lease.note_error(error)
                if isinstance(error, lease.session.driver.error_class):
                    raise PreviousStatementLost(self.alias) from error
                raise
            if rows is None:
                lease.is_broken = True
        return rows is not None and int(rows[0][0]) == sequence.last_id


@contextmanager
def hold_connection(using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Keep the connection of an alias with this thread, from its first statement to the end of the block.

    It is for code that needs one session for several statements with ``release = "transaction"``. On an alias with
    ``release = "request"``, or one that is not pooled, it does nothing. Blocks can be nested. It is for the calling thread,
    and so for synchronous code.

    :param using: the database alias; default ``"default"``
    :raises django.db.utils.ConnectionDoesNotExist: if ``DATABASES`` does not have the alias
    """
    wrapper = connections[using]
    if not isinstance(wrapper, TransactionRelease):
        yield
        return
    wrapper.holds += 1
    try:
        yield
    finally:
        wrapper.holds -= 1
        lease = wrapper.lease
        if lease is not None and lease.return_requested:
            lease.return_if_requested()
