"""The patch: what makes a subclass of Django's MySQL ``DatabaseWrapper`` draw on a pool.

Only seams of Django's are overridden, and each calls ``super()``; whatever Django does for MySQL is still Django's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FunctionType
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.mysql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.functional import cached_property

from .cursor import watched
from .driver import Driver, driver_for
from .forks import leave_to_parent
from .lease import Lease, WrapperReference, wrapper_is_gone
from .options import pool_options
from .pool import Pool
from .registry import notice_fork, pool_for
from .report import stack_of_caller
from .scope import current_scope, is_in_event_loop
from .transactions import TransactionRelease

#: Seconds since the last statement after which the connection is looked at before the next one.
LOOK_AGAIN_AFTER = 1.0

#: What Django calls to connect; a class that overrides one of these wants to be asked each time.
_SEAMS = frozenset(
    """
    check_settings connect ensure_connection get_connection_params get_new_connection init_connection_state set_autocommit
    """.split()
)
_seams_of = attrgetter(*sorted(_SEAMS))


def _is_djangos_own(method: Any) -> bool:
    return type(method) is FunctionType and method.__globals__["__name__"].startswith("django.")


#: As long as these are all that are there, nobody has put a method of his own in the place of Django's, as Sentry does.
_DJANGOS_OWN = tuple(filter(_is_djangos_own, _seams_of(DatabaseWrapper)))
#: The same, of what is asked for each cursor: pytest-django's refuses tests the database.
_ENSURE_CONNECTION = DatabaseWrapper.ensure_connection if _is_djangos_own(DatabaseWrapper.ensure_connection) else None


class PooledDatabaseMixin(TransactionRelease):
    """Pools the connections of the ``DatabaseWrapper`` that it stands before.

    In a module that ``ENGINE`` names::

        class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
            pass

    ``ImproperlyConfigured`` is raised when a wrapper is made for an alias whose pool options are wrong.
    """

    #: What Django's backend calls ``Database``.
    driver: Driver
    _is_plain = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        others = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in {"django", "django_mysqlpool"}]
        cls._is_plain = all(_SEAMS.isdisjoint(vars(other)) for other in others)
        if hasattr(cls, "Database"):
            cls.driver = driver_for(cls.Database)

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        #: ``None``: not pooled, as is Django's connection without a database, which creates and drops test databases.
        self.pool_options = None if alias == NO_DB_ALIAS else pool_options(alias, self.settings_dict)
        #: Held while anything is done with the connection.
        self.use = threading.RLock()
        self.reference = WrapperReference(self, wrapper_is_gone)
        self._lease: Lease | None = None
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
        """Close this alias' pool: what is idle now, what is out when it is given back."""
        pool = self.pool
        if pool is not None:
            pool.close()

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        params.pop("pool", None)
        if self.pool_options is not None:
            params["cursorclass"] = watched(
                params.get("cursorclass") or self.driver.cursor_class, *self.driver.cursor_mixins
            )
        return params

    # (Django refuses both of these in an event loop's thread, in ensure_connection() and in what super() does.)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.pool_options is None:
            return super().get_new_connection(conn_params)
        pool = self._pool_for(conn_params)
        if self._lease is None:
            self._lease = pool.checkout(self, conn_params)
        if self._known_facts is not pool.server_facts:
            self._forget_server()
        return self._lease.session.connection

    def open_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the driver's, for the pool."""
        return self.driver.open(super().get_new_connection, conn_params)

    def connect(self) -> None:
        self._is_parked = False
        self._is_connecting = self.pool_options is not None
        try:
            super().connect()
            self._settings_then = _copied(self.settings_dict)
        except BaseException:
            # A session that could not be set up is nobody's; Django would keep it.
            if self._lease is not None:
                self.close()
            raise
        finally:
            self._is_connecting = False
        lease = self._lease
        if lease is not None:
            # What receivers of connection_created have done is set-up too.
            lease.session.mark_set_up()
            if lease.statement is not None:
                lease.statement = lease.run = lease.session.run = None
            self._count_in(lease)

    def _count_in(self, lease: Lease) -> None:
        """The lease is ready for use: it is the current work's."""
        scope = current_scope()
        if scope is not None:
            scope.add(lease)
        if scope is None or lease.pool.options.leak_after is not None:
            lease.stack = stack_of_caller()
        if lease.is_shared:
            lease.is_wanted_back = True

    def _resume(self) -> bool:
        """Take a connection that lies ready where Django's ``connect()`` would change nothing else.

        That is where nothing has been done to this wrapper since it gave a connection back, its settings are what they
        were, nobody listens for new connections, no code but Django's and ours has a say in it, and the session is set up.
        """
        self._is_parked = False
        if not self._is_plain or connection_created.receivers or self._settings_then != self.settings_dict:
            return False
        if is_in_event_loop():  # where Django may refuse
            return False
        if _seams_of(DatabaseWrapper) != _DJANGOS_OWN:
            return False
        assert self._bound is not None
        (_, _, autocommit), pool = self._bound
        lease = None if pool.is_abandoned else pool.checkout_warm(self)
        if lease is None:
            return False
        self._lease, session = lease, lease.session
        if (
            self._known_facts is not pool.server_facts
            or not session.is_set_up
            or session.connection.get_autocommit() != autocommit
        ):
            return False  # connect() goes on with this lease
        self.errors_occurred = False
        self.health_check_done = True
        self.connection = session.connection
        self._count_in(lease)
        return True

    def init_connection_state(self) -> None:
        is_warm = self._lease is not None and self._lease.session.is_set_up
        if not (self._is_connecting and is_warm):  # whoever else calls it wants it done
            super().init_connection_state()

    # Using: whatever the holder does with its connection it does under ``use``, so that nobody takes it from under it.

    def ensure_connection(self) -> None:
        notice_fork()
        lease = self._lease
        if lease is not None and lease.pool.is_abandoned:
            leave_to_parent(self)  # it was another thread of this process that noticed
        elif lease is not None:
            if lease.scope is not None and lease.scope is not current_scope():
                self._leave_other_work(lease)
            if lease.is_lost or time.monotonic() - lease.session.last_used > LOOK_AGAIN_AFTER:
                self._look_again(lease)
            has_it_still = self._lease is lease and self.connection is not None
            if has_it_still and DatabaseWrapper.ensure_connection is _ENSURE_CONNECTION:
                return
        elif self._is_parked and self._begun_in is None and not self._begins_later and self._resume():
            return
        super().ensure_connection()

    def _look_again(self, lease: Lease) -> None:
        """Before a statement, give back a connection that has died; not in a transaction, which would lose its beginning.

        Nor does a session that may hold something of its borrower's, a lock or a variable, make way for another in silence:
        it takes the error of its next statement to tell.
        """
        if self._lease is not lease or self.in_atomic_block or not self.autocommit:
            return
        if lease.is_lost or (not lease.session.verdict and not lease.is_busy and not lease.pool.is_alive(lease.session)):
            lease.is_lost = True
            self.close()

    def _leave_other_work(self, lease: Lease) -> None:
        """Give back, rolled back, what this thread still has of a piece of work that it no longer does.

        Code in no scope may be part of that work, in a context of its own: it leaves an open transaction alone.
        """
        assert lease.scope is not None
        scope = current_scope()
        if not lease.scope.contains(scope):
            self.take_back(lease, by_force=lease.scope.has_ended or scope is not None)

    def _cursor(self, name: str | None = None) -> Any:
        with self.use:
            cursor = super()._cursor(name)  # type: ignore[misc]
            if self._lease is not None:
                self._lease.is_busy = True
            return cursor

    def _commit(self) -> None:
        with self._in_use():
            super()._commit()  # type: ignore[misc]

    def _rollback(self) -> None:
        with self._in_use():
            super()._rollback()  # type: ignore[misc]

    def _set_autocommit(self, autocommit: bool) -> None:
        with self._in_use():
            if self.connection is None:  # idle until now, it was taken back after Django had looked
                self.connect()
            super()._set_autocommit(autocommit)  # type: ignore[misc]

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Hold the connection, and tell the pool of errors that no cursor tells it of."""
        with self.use:
            try:
                yield
            except BaseException as error:
                if self._lease is not None:
                    self._lease.note_error(error)
                raise

    def is_usable(self) -> bool:
        with self.use:
            # What was given back by _close() alone is still in ``connection``, and somebody else's to ask.
            is_own = self.pool_options is None or self._lease is not None
            return self.connection is not None and is_own and super().is_usable()

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        if self._is_connecting and self.connection.get_autocommit() == autocommit:
            # A warm session comes as the settings want it; the driver knows that without asking.
            self.autocommit = autocommit
            return
        lease = self._lease
        try:
            super().set_autocommit(autocommit, *args, **kwargs)
        except Exception:
            # Died at the end of its transaction, as atomic() ends one too: Django would believe that it is still in it.
            if autocommit and lease is not None and lease.is_lost:
                self.close()
            raise
        lease = self._lease
        if lease is not None and lease.is_wanted_back:
            lease.settle()

    # Giving back

    def _close(self) -> None:
        with self.use:
            if self._lease is None:
                super()._close()  # type: ignore[misc]
            else:
                self._check_in(self._lease)

    def _check_in(self, lease: Lease) -> None:
        """Under ``use``."""
        self._lease = None
        if self.errors_occurred:
            lease.session.is_suspect = True
        # Inside atomic() Django keeps its reference to the closed connection; nobody else may be lent that one.
        lease.pool.checkin(lease, self.get_connection_params, discard=self.in_atomic_block)

    def give_back(self) -> None:
        """End the use of the connection, whatever state it was left in; what was left open is rolled back."""
        with self.use:
            self._give_back()

    def _give_back(self) -> None:
        """The same, under ``use``."""
        self.in_atomic_block = False
        if self._lease is not None:
            self._check_in(self._lease)
        self.forget_connection()

    def take_back(self, lease: Lease, *, by_force: bool = False, may_ask_server: bool = True) -> None:
        """Give the leased connection back, from any thread, if nothing is being done with it.

        With ``by_force`` it goes back whatever state it is in, if the calling thread is its holder or the holder is dead.
        With ``may_ask_server=False`` it is left alone where it can't be cleaned without the server.
        """
        if not self.use.acquire(blocking=False):
            return  # its holder is using it, and looks whether it is wanted back when it is done
        try:
            is_free = by_force and lease.is_of_this_thread_or_a_dead_one()
            if lease.is_over:
                self._leave_closed_block(lease, is_free)
            elif (may_ask_server or not self._needs_server(lease)) and (is_free or self._is_idle(lease)):
                self._give_back()
        finally:
            self.use.release()

    def _leave_closed_block(self, lease: Lease, is_free: bool) -> None:
        """The connection was closed inside an ``atomic()`` block; unless its thread may be in that still, leave it."""
        is_in_block = self._lease is None and self.closed_in_transaction
        if is_in_block and not is_free:
            return
        if is_in_block:
            self.forget_connection()
        if lease.scope is not None:
            lease.scope.discard(lease)

    def _is_idle(self, lease: Lease) -> bool:
        if self.in_atomic_block or self.autocommit != self.settings_dict["AUTOCOMMIT"]:
            return False
        if lease.is_busy or self.is_pinned(lease):
            self.note_pin(lease)
            return False
        return True

    def _needs_server(self, lease: Lease) -> bool:
        assert self.pool_options is not None
        return self.pool_options.reset == "always" or lease.session.needs_server_to_clean()

    def forget_connection(self) -> None:
        """Be as if this wrapper had never connected; the connection itself is somebody else's to see to."""
        self._lease = None
        self._is_parked = True
        self.connection = None
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.atomic_blocks = []
        self.needs_rollback = False
        self.closed_in_transaction = False
        self.run_on_commit = []
        self._begins_later = False
        self._begun_in = None
        self.autocommit = self.settings_dict["AUTOCOMMIT"]

    # What Django knows about the server

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        pool = self.pool
        if pool is None:
            return super().mysql_server_data
        if pool.server_facts is None:
            with self.use, self.temporary_connection() as cursor:
                lease = self._lease
                assert lease is not None
                verdict = lease.session.verdict
                # One session answers all of it; whoever wants it back gets it with the end of the cursor.
                is_wanted_back, lease.is_wanted_back = lease.is_wanted_back, False
                try:
                    facts = super().mysql_server_data
                    cursor.execute("SELECT @@wait_timeout")
                    pool.note_server_facts(facts, wait_timeout=cursor.fetchone()[0])
                    # To read @@variables is judged dirty; here it is known what was read.
                    lease.session.verdict = verdict
                finally:
                    lease.is_wanted_back |= is_wanted_back
        self._known_facts = pool.server_facts
        return self._known_facts or {}

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


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings to compare with later, when they may have been changed in their place."""
    return {**settings, "OPTIONS": {**settings["OPTIONS"]}}
