"""What MySQL ties to the previous statement of a session, if a session may be another's between two statements."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

from django_mysqlpool.mysqlpool.errors import PreviousStatementLost
from django_mysqlpool.mysqlpool.statements import StatementEffects

from .scope import Scope

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease


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


class Sequences:
    """The sequences of a wrapper's statements, one after the other."""

    def __init__(self) -> None:
        self._current = Sequence()

    def end_current(self) -> None:
        """The wrapper was closed: what is sent next asks about nothing that was sent before."""
        self._current = Sequence()

    def must_reach_previous(self, lease: Lease, effects: StatementEffects) -> None:
        """Before a statement, which may ask about the one before it, or about the last INSERT.

        :raises PreviousStatementLost: if that was sent on another session, or others have used this one since
        """
        sequence, history = lease.sharing.sequence, lease.session.history
        if sequence is None:
            scope = None if lease.scope is None else ref(lease.scope)
            if history.sequence is not self._current or scope != self._current.scope:
                self._current = Sequence(scope)
            lease.sharing.sequence = sequence = self._current
        if (effects.asks_about_previous and not sequence.has_begun) or (
            effects.asks_about_last_id and not self._is_last_id_of(sequence, lease, effects)
        ):
            raise PreviousStatementLost(lease.alias)
        sequence.has_begun = True
        history.sequence = sequence
        # (After what is dirty the session is reset, and has no last id.)
        if effects.sets_last_id or not (effects.is_single or effects.on_session):
            history.last_id_of = sequence if history.last_id_of in {None, sequence} else _SEVERAL

    def _is_last_id_of(self, sequence: Sequence, lease: Lease, effects: StatementEffects) -> bool:
        """True if the session's last id is of this sequence.

        An INSERT that gives its own id, or whose table numbers nothing, leaves an older one in place. So if others have
        inserted on this session, it is asked which it is; but not if the question is about the previous statement too.
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
                    raise PreviousStatementLost(lease.alias) from error
                raise
            if rows is None:
                lease.invalidate("lost")
        return rows is not None and int(rows[0][0]) == sequence.last_id
