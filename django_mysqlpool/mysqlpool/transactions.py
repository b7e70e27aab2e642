"""``release = "transaction"``: a connection is held while a statement runs, or while a transaction does.

Most of it is done by what there is for the end of a request: each lease is wanted back from its beginning, so its holder
gives it back when it is done with a statement or a transaction. Here is what Django must not notice of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.utils import debug_transaction

from .errors import PreviousStatementLost
from .scope import Scope, current_scope, on_behalf_of
from .statements import Judgement, kind_of

if TYPE_CHECKING:
    from django.db.backends.mysql.base import DatabaseWrapper as _Base

    from .lease import Lease
    from .options import PoolOptions
else:
    _Base = object

# What Django's connect() resets, though it may be the first statement of a block that connects.
_BLOCK = ("in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback", "run_on_commit")


class Run:
    """Statements of one wrapper, for one piece of work, on one session, with nobody else's in between.

    It goes on for as long as it is both the wrapper's last one and the session's.
    """

    __slots__ = ("has_begun", "last_id", "scope")

    def __init__(self, scope: ReferenceType[Scope] | None = None) -> None:
        self.scope = scope
        self.has_begun = False
        #: What the driver was told by the last statement that may have set ``LAST_INSERT_ID()``; ``None``: there was none.
        self.last_id: int | None = None


#: More than one have set their session's last id.
_SEVERAL = Run()


class TransactionRelease(_Base):
    """The part of a pooled wrapper that knows when its connection may be somebody else's between two statements."""

    pool_options: PoolOptions | None
    _lease: Lease | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: ``hold_connection`` blocks that are open.
        self.holds = 0
        #: A transaction has begun for Django, and begins on the server with its first statement.
        self._begins_later = False
        #: The piece of work that the transaction is a part of, though its first statement may be sent in another one.
        self._begun_in: Scope | None = None
        self._run = Run()

    @property
    def releases_per_transaction(self) -> bool:
        """Whether the connection goes back between statements."""
        return self.pool_options is not None and self.pool_options.release == "transaction"

    # A transaction begins with its first statement.

    def get_autocommit(self) -> bool:
        if self._begun_in is not None:
            self._leave_block_of_other_work()
        if self.connection is None and self.releases_per_transaction:
            return bool(self.settings_dict["AUTOCOMMIT"]) and not self._begins_later
        return super().get_autocommit()

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        if self.connection is not None or not self.releases_per_transaction or not self.settings_dict["AUTOCOMMIT"]:
            super().set_autocommit(autocommit, *args, **kwargs)
            return
        self.validate_no_atomic_block()
        self.autocommit = autocommit
        self._begins_later = not autocommit
        self._begun_in = None if autocommit else current_scope()
        if self._begun_in is not None:
            self._begun_in.blocks.add(self)
        if autocommit and self.run_commit_hooks_on_set_autocommit_on:
            # A transaction without a statement has been committed.
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    # Whoever closes a connection finds autocommit as the settings want it, next time.

    def close(self) -> None:
        super().close()
        self._run = Run()
        if self._begins_later and not self.in_atomic_block:
            self._begins_later, self.autocommit = False, True

    def close_if_unusable_or_obsolete(self) -> None:
        super().close_if_unusable_or_obsolete()
        if self._begins_later and not self.in_atomic_block:
            self.close()

    def leave_block(self) -> bool:
        """Forget a transaction without a statement whose work is over; ``False``: that is for another thread to do."""
        if not self._begins_later or self.connection is not None:
            return True
        if self._thread_ident != get_ident():  # type: ignore[attr-defined]
            return False
        self.forget_connection()  # type: ignore[attr-defined]
        return True

    def _leave_block_of_other_work(self) -> None:
        """The same where this thread has gone on to other work since."""
        begun_in, scope = self._begun_in, current_scope()
        if begun_in is not None and not begun_in.contains(scope) and (begun_in.has_ended or scope is not None):
            self.leave_block()

    def ensure_connection(self) -> None:
        if self._begun_in is not None:
            self._leave_block_of_other_work()
        if self._begins_later and self.connection is None:
            self._begin()
        else:
            super().ensure_connection()

    def _begin(self) -> None:
        """Connect inside a block that Django has begun, and begin the transaction on the server too."""
        block = {name: getattr(self, name) for name in _BLOCK}
        self._begins_later = self.in_atomic_block = False
        try:
            with on_behalf_of(self._begun_in):
                super().ensure_connection()
            with debug_transaction(self, "BEGIN"):
                super()._set_autocommit(False)  # type: ignore[misc]
        except BaseException:
            self.close()
            self._begins_later = True
            raise
        finally:
            self.__dict__.update(block)
            self.autocommit = False

    @contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        if not self._begins_later:
            with super().temporary_connection() as cursor:
                yield cursor
            return
        # The first statement of the transaction; Django would close what it finds closed, and end it.
        with self.cursor() as cursor:
            yield cursor

    # Pins: what keeps a connection with its thread.

    def is_pinned(self, lease: Lease) -> bool:
        """Whether the connection has to stay between statements, though nothing is being done with it."""
        if not lease.is_shared or (lease.scope is not None and lease.scope.has_ended):
            return False
        return self.holds > 0 or not self.autocommit or bool(lease.session.verdict)

    def note_pin(self, lease: Lease) -> None:
        """Count a lease that stays, once, by the reason: what a person can look for in the code."""
        if lease.is_pinned or self.holds or not self.autocommit:
            return
        lease.is_pinned = True
        reason = kind_of(lease.session.dirtied_by) or "unknown" if lease.session.verdict else "unread result"
        with lease.pool.lock:
            lease.pool.pins[reason] += 1

    # What MySQL ties to the previous statement of a session.

    def must_reach_previous(self, lease: Lease, judgement: Judgement) -> None:
        """Before a statement, which may ask about the one before it, or about the last INSERT.

        Raises ``PreviousStatementLost`` where that was sent on another session, or others have used this one since.
        """
        run, session = lease.run, lease.session
        if run is None:
            scope = None if lease.scope is None else ref(lease.scope)
            if session.run is not self._run or scope != self._run.scope:
                self._run = Run(scope)
            lease.run = run = self._run
        if (judgement.asks_about_previous and not run.has_begun) or (
            judgement.asks_about_last_id and not self._is_last_id_of(run, lease, judgement)
        ):
            raise PreviousStatementLost(self.alias)
        run.has_begun = True
        session.run = run
        # (After what is dirty the session is reset, and has no last id.)
        if judgement.sets_last_id or not (judgement.is_single or judgement.verdict):
            session.last_id_of = run if session.last_id_of in {None, run} else _SEVERAL

    def _is_last_id_of(self, run: Run, lease: Lease, judgement: Judgement) -> bool:
        """Whether the session's last id is of this run.

        An INSERT that gives its own id, or whose table numbers nothing, leaves an older one in place. So where others have
        inserted on this session, it is asked which it is; but not where the question is about the previous statement too.
        """
        if run.last_id is None or lease.session.last_id_of is run:
            return run.last_id is not None
        if judgement.asks_about_previous:
            return False
        with lease.use:
            rows = lease.session.ask(b"SELECT LAST_INSERT_ID()")
        return rows is not None and int(rows[0][0]) == run.last_id


@contextmanager
def hold_connection(using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Keep the connection of an alias, once it is taken, to the end of the block.

    For code that talks with one session over several statements where ``release`` is ``"transaction"``; elsewhere it does
    nothing. It is for the calling thread, and so for synchronous code.
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
        lease = wrapper._lease
        if lease is not None and lease.is_wanted_back:
            lease.settle()
