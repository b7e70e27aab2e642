"""The patch: what makes a subclass of Django's MySQL ``DatabaseWrapper`` draw on a pool.

Each overridden method calls ``super()``: whatever Django does for MySQL is still Django's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from threading import get_ident
from types import FunctionType
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.mysql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.functional import cached_property

from django_mysqlpool.mysqlpool.drivers import driver_for
from django_mysqlpool.mysqlpool.drivers.base import Driver
from django_mysqlpool.mysqlpool.log import tell, unsaid
from django_mysqlpool.mysqlpool.masking import ConnectionParams, WithoutFramesOf, masking_params
from django_mysqlpool.mysqlpool.pool.borrowing import BorrowerReference, borrower_is_gone
from django_mysqlpool.mysqlpool.pool.connection import Lease
from django_mysqlpool.mysqlpool.pool.connector import PoolForgotten
from django_mysqlpool.mysqlpool.pool.fork import notice_fork
from django_mysqlpool.mysqlpool.pool.locks import acquire_if_free
from django_mysqlpool.mysqlpool.pool.pool import Pool
from django_mysqlpool.mysqlpool.pool.stacks import stack_of_caller
from django_mysqlpool.mysqlpool.pool.states import IN_USE, READY, RETURNED
from django_mysqlpool.mysqlpool.pool.writes import VARIABLES, ServerState

from .aliases import copied, pool_for
from .cursor import watched
from .scope import current_scope, is_in_event_loop
from .settings import pool_options
from .threads import detach_after_fork
from .transactions import TransactionRelease

#: Seconds since the last statement after which the connection is looked at before the next one.
RECHECK_AFTER = 1.0

#: Methods that Django calls to connect. A class that overrides one of these wants to be asked each time.
_OVERRIDABLE = frozenset(
    """
    check_settings connect ensure_connection get_connection_params get_new_connection init_connection_state set_autocommit
    """.split()
)
_overridable_of = attrgetter(*sorted(_OVERRIDABLE))


def _is_djangos_own(method: Any) -> bool:
    return type(method) is FunctionType and method.__globals__["__name__"].startswith("django.")


#: Django's own methods. If one differs later, somebody has patched it, as Sentry does, and the fast path is off.
_DJANGOS_OWN = tuple(filter(_is_djangos_own, _overridable_of(DatabaseWrapper)))
#: The same, of what is asked for each cursor: pytest-django's refuses tests the database.
_ENSURE_CONNECTION = DatabaseWrapper.ensure_connection if _is_djangos_own(DatabaseWrapper.ensure_connection) else None


class PooledDatabaseMixin(TransactionRelease):
    """Pools the connections of a Django MySQL ``DatabaseWrapper``; put it first among the base classes.

    In a module that ``ENGINE`` names::

        class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
            pass

    :raises django.core.exceptions.ImproperlyConfigured: when a wrapper is made, if the pool options of its alias are wrong
    """

    #: The driver's module is ``Database`` in Django's backend.
    driver: Driver
    _is_plain = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        others = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in {"django", "django_mysqlpool"}]
        cls._is_plain = all(_OVERRIDABLE.isdisjoint(vars(other)) for other in others)
        if cls.get_connection_params is not PooledDatabaseMixin.get_connection_params:
            cls.get_connection_params = masking_params(cls.get_connection_params)  # type: ignore[assignment]
        if hasattr(cls, "Database"):
            cls.driver = driver_for(cls.Database)

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        del settings_dict  # an error about the options shows this frame's variables
        #: ``None``: not pooled, as is Django's connection without a database, which creates and drops test databases.
        self.pool_options = None if alias == NO_DB_ALIAS else pool_options(alias, self.settings_dict)
        #: Held while anything is done with the connection.
        self.use = threading.RLock()
        self.reference = BorrowerReference(self, borrower_is_gone)
        self.reference.alias, self.reference.use = alias, self.use
        self.lease: Lease | None = None
        self._is_parked = False
        self._settings_then: dict[str, Any] | None = None
        self._bound: tuple[tuple[Any, ...], Pool] | None = None
        self._known_facts: dict[str, Any] | None = None
        self._is_connecting = False

    @property
    def pool(self) -> Pool | None:
        """The pool that serves this alias as its settings are now; ``None`` where it is not pooled."""
        return None if self.pool_options is None else self._pool_for(self.get_connection_params())

    def _pool_for(self, conn_params: dict[str, Any]) -> Pool:
        """The pool for these parameters; looked up again only where they, or the process, are others than last time."""
        what = (conn_params, self.isolation_level, self.settings_dict["AUTOCOMMIT"])
        if self._bound is None or self._bound[0] != what or self._bound[1].is_abandoned:
            assert self.pool_options is not None
            self._bound = (what, pool_for(self, conn_params, self.pool_options))
        return self._bound[1]

    def close_pool(self) -> None:
        """Close this alias' pool: what is idle now, what is out when it is returned."""
        pool = self.pool
        if pool is not None:
            pool.close()

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        with WithoutFramesOf("django"):
            params = ConnectionParams(super().get_connection_params())
        params.pop("pool", None)
        if self.pool_options is not None:
            params["cursorclass"] = watched(
                params.get("cursorclass") or self.driver.cursor_class, *self.driver.cursor_mixins
            )
        return params

    # (Django refuses both of these in an event loop's thread, in ensure_connection() and in what super() does.)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if type(conn_params) is not ConnectionParams:  # from a subclass
            conn_params = ConnectionParams(conn_params)
        if self.pool_options is None:
            with WithoutFramesOf(self.Database.__name__):
                return super().get_new_connection(ConnectionParams(conn_params))
        pool = self._pool_for(conn_params)
        with self.use:
            if self.lease is not None and self.lease.is_connected:
                # Django wants another one: somebody has called connect(), or set ``connection`` to None.
                self._check_in_lease(self.lease)
                self.connection = None
            if self.lease is None:
                while True:
                    try:
                        self.lease = pool.checkout(self, conn_params)
                        break
                    except PoolForgotten:
                        pool = self._pool_for(conn_params)
                self._note_sharing(self.lease)
            if self._known_facts is not pool.server.data:
                self._forget_server()
            return self.lease.session.connection

    def open_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the driver's, for the pool."""
        with WithoutFramesOf(self.Database.__name__):
            return self.driver.open(super().get_new_connection, conn_params)

    def connect(self) -> None:
        with self.use:
            self._is_parked = self._is_deferred = False
            self._deferred_scope = None
            self._is_connecting = self.pool_options is not None
            try:
                super().connect()
                self._settings_then = copied(self.settings_dict)
                if self.lease is not None:
                    self._note_set_up(self.lease)
            except BaseException:
                # A session that could not be set up is nobody's; Django would keep it.
                if self.lease is not None:
                    self.close()
                raise
            finally:
                self._is_connecting = False

    def _note_set_up(self, lease: Lease) -> None:
        # What receivers of connection_created have done is set-up too.
        lease.session.mark_set_up()
        if lease.statement is not None:
            lease.statement = lease.session.history.sequence = None
            if lease.sharing is not None:
                lease.sharing.sequence = None
        self._count_in(lease)

    def _count_in(self, lease: Lease) -> None:
        """The lease is ready for use: it is the current work's."""
        scope = current_scope()
        if scope is not None:
            scope.add(lease)
        assert self.pool_options is not None
        if scope is None or self.pool_options.leak_after is not None:
            lease.stack = stack_of_caller()
        if lease.sharing is not None:
            lease.return_requested = True
        lease.is_connected = True

    def _resume(self) -> bool:
        """Take a connection that lies ready where Django's ``connect()`` would change nothing else.

        That is where nothing has been done to this wrapper since it returned a connection, its settings are what they
        were, nobody listens for new connections, no code but Django's and ours has a say in it, and the session is set up.
        """
        if not self._is_plain or connection_created.receivers or self._settings_then != self.settings_dict:
            return False
        if is_in_event_loop():  # where Django may refuse
            return False
        if _overridable_of(DatabaseWrapper) != _DJANGOS_OWN:
            return False
        assert self._bound is not None
        (_, _, autocommit), pool = self._bound
        with self.use:
            try:
                self.lease = lease = None if pool.is_abandoned else pool.checkout_idle(self)
                if lease is None:
                    return False
                self._note_sharing(lease)
                session = lease.session
                if (
                    self._known_facts is not pool.server.data
                    or session.state != READY
                    or session.connection.get_autocommit() != autocommit
                ):
                    return False  # connect() goes on with this lease
                self._is_parked = False
                self.errors_occurred = False
                self.health_check_done = True
                self.connection = session.connection
                self._count_in(lease)
            except BaseException:
                self.check_in()
                raise
        return True

    def init_connection_state(self) -> None:
        session = None if self.lease is None else self.lease.session
        if not self._is_connecting or session is None:  # whoever else calls it wants it done
            super().init_connection_state()
        elif session.state != READY:
            state = session.state
            super().init_connection_state()
            session.go_back_to(state)  # Django's own set-up leaves nothing that a pool must know of

    # Using: whatever the holder does with its connection it does under ``use``, so that nobody takes it from under it.

    def ensure_connection(self) -> None:
        notice_fork()
        lease = self.lease
        if lease is not None and lease.pool.is_abandoned:
            detach_after_fork(self)  # it was another thread of this process that noticed
        elif lease is not None:
            if lease.scope is not None and lease.scope is not current_scope():
                self._leave_other_work(lease)
            if lease.is_broken or time.monotonic() - lease.session.last_used > RECHECK_AFTER:
                self._recheck(lease)
            has_it_still = self.lease is lease and self.connection is not None
            if has_it_still and DatabaseWrapper.ensure_connection is _ENSURE_CONNECTION:
                return
        elif self._is_parked and self._deferred_scope is None and not self._is_deferred and self._resume():
            return
        else:
            self._drop_what_is_not_ours()
        super().ensure_connection()

    def _recheck(self, lease: Lease) -> None:
        """Before a statement, return a connection that has died; not in a transaction, which would lose its beginning.

        Nor does a session that may hold something of its borrower's, a lock or a variable, make way for another in silence:
        it takes the error of its next statement to tell.
        """
        # The look may be a ping: nobody may take the connection while its answer is outstanding.
        with self.use:
            if self.lease is not lease or self.in_atomic_block or not self.autocommit:
                return
            if lease.is_broken or not (lease.session.is_dirty or lease.state or self._is_alive(lease)):
                lease.is_broken = True
                self.close()

    def _is_alive(self, lease: Lease) -> bool:
        try:
            return lease.pool.liveness.is_alive(lease.session)
        except BaseException:  # an interrupt
            lease.is_broken = True
            raise

    def _leave_other_work(self, lease: Lease) -> None:
        """Return, rolled back, what this thread still has of a piece of work that it no longer does.

        Code in no scope may be part of that work, in a context of its own: it leaves an open transaction alone.
        """
        assert lease.scope is not None
        scope = current_scope()
        if not lease.scope.contains(scope):
            self.check_in_if_idle(lease, by_force=lease.scope.has_ended or scope is not None)

    def _cursor(self, name: str | None = None) -> Any:
        with self.use:
            cursor = super()._cursor(name)  # type: ignore[misc]
            lease = self.lease
            if lease is not None:
                lease.state = IN_USE
                if lease.thread_id != get_ident():
                    lease.change_holder()
            return cursor

    def _commit(self) -> None:
        with self._in_use():
            super()._commit()  # type: ignore[misc]

    def _rollback(self) -> None:
        with self._in_use():
            super()._rollback()  # type: ignore[misc]

    def _set_autocommit(self, autocommit: bool) -> None:
        with self._in_use():
            if self.connection is None:  # idle until now, it was returned after Django had looked
                self.connect()
            super()._set_autocommit(autocommit)  # type: ignore[misc]
            # Django does this next; but in between the connection would seem to be idle, and might be taken.
            self.autocommit = autocommit

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Hold the connection, and tell the pool of errors that no cursor tells it of."""
        with self.use:
            lease = self.lease
            if lease is None:
                self._drop_what_is_not_ours()
            elif lease.thread_id != get_ident():
                lease.change_holder()
            try:
                yield
            except BaseException as error:
                if self.lease is not None:
                    # The driver's own, which Django has wrapped.
                    self.lease.note_error(error.__cause__ if isinstance(error, Error) and error.__cause__ else error)
                raise

    def _drop_what_is_not_ours(self) -> None:
        """Forget a connection that has gone back, where an interrupt kept its checkin from doing that.

        Inside ``atomic()`` it is a closed one, which Django keeps until the block ends.
        """
        if self.connection is not None and self.pool_options is not None and not self.in_atomic_block:
            self.connection = None

    def is_usable(self) -> bool:
        with self._in_use():
            # What was returned by _close() alone is still in ``connection``, and somebody else's to ask.
            if self.connection is None or (self.pool_options is not None and self.lease is None):
                return False
            is_usable = super().is_usable()
            if not is_usable and self.lease is not None:
                self.lease.note_death()
            return is_usable

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        if self._is_connecting and self.connection.get_autocommit() == autocommit:
            # A warm session comes as the settings want it; the driver knows that without asking.
            self.autocommit = autocommit
            if autocommit:
                self.run_waiting_hooks()
            return
        lease = self.lease
        try:
            super().set_autocommit(autocommit, *args, **kwargs)
        except Exception:
            # Died at the end of its transaction, as atomic() ends one too: Django would believe that it is still in it.
            if autocommit and lease is not None and lease.is_broken:
                self.close()
            raise
        finally:
            # A hook of on_commit() may have failed; the transaction has ended all the same.
            lease = self.lease
            if lease is not None and lease.return_requested:
                lease.return_if_requested()

    # Giving back

    def _close(self) -> None:
        with self.use:
            if self.lease is None:
                super()._close()  # type: ignore[misc]
            else:
                self._check_in_lease(self.lease)
        if unsaid and not self.in_atomic_block:
            self._tell_closed()

    def _tell_closed(self) -> None:
        """Log what has been put off until this wrapper is closed; a handler may use it."""
        self.connection = None
        tell()
        with self.use:
            if self.lease is not None:
                self._check_in_lease(self.lease)

    def _check_in_lease(self, lease: Lease) -> None:
        """Under ``use``."""
        self.lease = None
        if self.errors_occurred:
            lease.session.needs_ping = True
        # Inside atomic() Django keeps its reference to the closed connection; nobody else may be lent that one.
        lease.pool.checkin(lease, self.get_connection_params, discard=self.in_atomic_block)

    def check_in(self) -> None:
        """End the use of the connection, whatever state it was left in; what was left open is rolled back.

        Only a block in which other threads may be stays: that is for their end to close.
        """
        with self.use:
            if self.is_in_shared_block():
                if self.lease is not None:
                    self.lease.return_requested = True
                return
            self._check_in_now()
        if unsaid:
            tell()
            with self.use:  # a handler may have used it
                self._check_in_now()

    def is_in_shared_block(self) -> bool:
        """True if a transaction is open that any thread may go on with (Django's ``inc_thread_sharing()``)."""
        return (self.in_atomic_block or not self.autocommit) and self.allow_thread_sharing

    def _check_in_now(self) -> None:
        """Check in, under ``use``, whatever state the connection is in."""
        self.in_atomic_block = False
        try:
            if self.lease is not None:
                self._check_in_lease(self.lease)
        finally:
            self.forget_connection()

    def close(self) -> None:
        super().close()
        if self.connection is None and self.lease is not None:
            # Somebody has set ``connection`` to None, and Django saw nothing to close.
            self._close()

    def get_autocommit(self) -> bool:
        lease = self.lease
        if lease is None or self.connection is None or lease.pool.is_abandoned or lease.scope is not current_scope():
            return super().get_autocommit()
        # Django asks it of a connection that may be dead, when it tidies up for instance: that one is not replaced for it.
        return self.autocommit

    def _check_in_keeping_state(self, lease: Lease) -> None:
        """Check the connection in between two statements, under ``use``. Django believes that it still has one."""
        try:
            self._check_in_lease(lease)
        finally:
            self.connection = None
            self._is_parked = True
        if self.has_leftover_state():
            self.remember_scope(lease.scope)

    def check_in_if_idle(self, lease: Lease, *, by_force: bool = False, may_ask_server: bool = True) -> None:
        """Give the leased connection back, from any thread, if nothing is being done with it.

        With ``by_force`` it goes back whatever state it is in, if the calling thread is its holder or the holder is dead;
        but not out of a block in which other threads may be.
        With ``may_ask_server=False`` it is left alone where it can't be cleaned without the server.
        """
        held: list[threading.RLock] = []
        try:
            if not acquire_if_free(self.use, held):
                return  # its holder is using it, and looks whether it is wanted back when it is done
            is_free = by_force and lease.is_of_this_thread_or_a_dead_one() and not self.is_in_shared_block()
            if lease.state == RETURNED:
                self._leave_closed_block(lease, is_free)
            elif (may_ask_server or not self._needs_server(lease)) and (is_free or self._is_idle(lease)):
                if is_free or lease.sharing is None or (lease.scope is not None and lease.scope.has_ended):
                    self._check_in_now()
                else:
                    self._check_in_keeping_state(lease)
        finally:
            for lock in held:
                lock.release()
        if unsaid and may_ask_server:
            tell()

    def _leave_closed_block(self, lease: Lease, is_free: bool) -> None:
        """The connection was closed inside an ``atomic()`` block; unless its thread may be in that still, leave it."""
        is_in_block = self.lease is None and self.closed_in_transaction
        if is_in_block and not is_free:
            return
        if is_in_block:
            self.forget_connection()
        if lease.scope is not None:
            lease.scope.discard(lease)

    def _is_idle(self, lease: Lease) -> bool:
        if self.in_atomic_block or self.autocommit != self.settings_dict["AUTOCOMMIT"]:
            return False
        if lease.state or self.is_pinned(lease):
            self.note_pin(lease)
            return False
        return True

    def _needs_server(self, lease: Lease) -> bool:
        assert self.pool_options is not None
        return self.pool_options.reset == "always" or lease.session.needs_server_to_clean()

    def forget_connection(self) -> None:
        """Be as if this wrapper had never connected; the connection itself is somebody else's to see to."""
        self.lease = None
        self._is_parked = True
        self.connection = None
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.atomic_blocks = []
        self.needs_rollback = False
        self.closed_in_transaction = False
        self.run_on_commit = []
        self.run_commit_hooks_on_set_autocommit_on = False
        self._is_deferred = False
        self._deferred_scope = None
        self.autocommit = self.settings_dict["AUTOCOMMIT"]

    # What Django knows about the server

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        pool = self.pool
        if pool is None:
            return super().mysql_server_data
        facts = pool.server.data
        if facts is None:
            with self.use, self.temporary_connection() as cursor:
                lease = self.lease
                assert lease is not None
                # One session answers all of it; whoever wants it back gets it with the end of the cursor.
                return_requested, lease.return_requested = lease.return_requested, False
                try:
                    state = lease.session.state
                    facts = super().mysql_server_data
                    cursor.execute(VARIABLES.format(scope="SESSION"))
                    pool.note_server_data(facts, ServerState.of(cursor.fetchall()))
                    lease.session.go_back_to(state)  # to read variables counts as dirty
                finally:
                    lease.return_requested |= return_requested
        self._known_facts = facts
        return facts

    def _forget_server(self) -> None:
        """Drop what Django has derived from the server's facts: they are another server's."""
        if self._known_facts is None:
            return
        self._known_facts = None
        base = type(self).__mro__
        for name in list(self.__dict__):
            if any(isinstance(vars(cls).get(name), cached_property) for cls in base):
                del self.__dict__[name]
        self.features = self.features_class(self)
