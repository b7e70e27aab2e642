"""The patch: what makes a subclass of Django's MySQL ``DatabaseWrapper`` draw on a pool.

Whatever Django does for MySQL is still Django's, by ``super()``.
"""

from __future__ import annotations

import time
from os import getpid
from threading import get_ident
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from django.db.backends.mysql.base import DatabaseWrapper
from django.utils.functional import cached_property

from django_mysqlpool.mysqlpool.drivers import driver_for
from django_mysqlpool.mysqlpool.log import unsaid
from django_mysqlpool.mysqlpool.masking import ConnectionParams, WithoutFramesOf, masking_params
from django_mysqlpool.mysqlpool.pool import fork
from django_mysqlpool.mysqlpool.pool.connector import PoolForgotten
from django_mysqlpool.mysqlpool.pool.states import IN_USE, READY

from . import checkin
from .aliases import pool_for
from .cursor import watched
from .fast_path import ENSURE_CONNECTION, note_connected, note_set_up, overrides_nothing, resume
from .pooled import PooledWrapper
from .receivers import note_log
from .scope import current_scope
from .sequences import Sharing
from .server_data import forget_server, server_data
from .threads import detach_after_fork
from .transactions import TransactionRelease, run_waiting_hooks
from .using import drop_what_is_not_ours, leave_other_work, recheck, use

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.pool import Pool

#: Seconds since the last statement after which the connection is looked at before the next one.
RECHECK_AFTER = 1.0


class PooledDatabaseMixin(PooledWrapper):
    """Pools the connections of a Django MySQL ``DatabaseWrapper``; put it first among the base classes.

    In a module that ``ENGINE`` names::

        class DatabaseWrapper(PooledDatabaseMixin, base.DatabaseWrapper):
            pass

    :raises django.core.exceptions.ImproperlyConfigured: when a wrapper is made, if the pool options of its alias are wrong;
        in a management command when it is asked to connect
    """

    release: TransactionRelease | None
    transaction_release = TransactionRelease

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.is_plain = overrides_nothing(cls)
        if cls.get_connection_params is not PooledDatabaseMixin.get_connection_params:
            cls.get_connection_params = masking_params(cls.get_connection_params)  # type: ignore[assignment]
        if hasattr(cls, "Database"):
            cls.driver = driver_for(cls.Database)

    @property
    def pool(self) -> Pool | None:
        """The pool that serves this alias as its settings are now; ``None`` if it is not pooled."""
        return None if self.pool_options is None else pool_of(self, self.get_connection_params())

    def close_pool(self) -> None:
        """Close this alias' pool: what is idle now, what is out when it is returned."""
        pool = self.pool
        if pool is not None:
            pool.close()

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        self.refuse_wrong_options()
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
        pool = pool_of(self, conn_params)
        with self.use:
            if self.lease is not None and self.lease.is_connected:
                # Django wants another one: somebody has called connect(), or set ``connection`` to None.
                checkin.check_in_lease(self, self.lease)
                self.connection = None
            if self.lease is None:
                while True:
                    try:
                        self.lease = pool.checkout(self, conn_params)
                        break
                    except PoolForgotten:
                        pool = pool_of(self, conn_params)
                if self.release is not None:
                    self.lease.sharing = Sharing()
            if self.known_facts is not pool.server.data:
                forget_server(self)
            return self.lease.session.connection

    def open_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the driver's, for the pool."""
        with WithoutFramesOf(self.Database.__name__):
            try:
                return self.driver.open(super().get_new_connection, conn_params)
            except BaseException as error:
                # Whoever keeps an interrupt keeps its frames: one may have a connection that counts on the server.
                clear_frames(error.__traceback__)
                raise

    def connect(self) -> None:
        with self.use:
            self.is_parked = False
            if self.release is not None:
                self.release.is_deferred, self.release.scope = False, None
            self.is_connecting = self.pool_options is not None
            try:
                super().connect()
                if self.lease is not None:
                    note_connected(self)
                    note_set_up(self, self.lease)
            except BaseException:
                # A session that could not be set up is nobody's; Django would keep it.
                if self.lease is not None:
                    self.close()
                raise
            finally:
                self.is_connecting = False

    def init_connection_state(self) -> None:
        session = None if self.lease is None else self.lease.session
        if not self.is_connecting or session is None:  # whoever else calls it wants it done
            super().init_connection_state()
        elif session.state != READY:
            state = session.state
            super().init_connection_state()
            session.go_back_to(state)  # Django's own set-up leaves nothing that a pool must know of

    # Using: whatever the holder does with its connection it does under ``use``, so that nobody takes it from under it.

    def ensure_connection(self) -> None:
        if getpid() != fork.pid:
            fork.notice_fork()
        lease = self.lease
        if lease is not None and lease.pool.is_abandoned:
            detach_after_fork(self)  # it was another thread of this process that noticed
        elif lease is not None:
            if lease.scope is not None and lease.scope is not current_scope():
                leave_other_work(self, lease)
            if lease.is_broken or time.monotonic() - lease.session.last_used > RECHECK_AFTER:
                recheck(self, lease)
            has_it_still = self.lease is lease and self.connection is not None
            if has_it_still and DatabaseWrapper.ensure_connection is ENSURE_CONNECTION:
                return
        else:
            if self.connection is not None:
                drop_what_is_not_ours(self)
            if (self.release is None or not self.release.has_deferred) and resume(self):
                return
        with self.use:  # a thread that shares the wrapper may be connecting, and then there is nothing more to do
            if self.release is None or not self.release.checkout(self, super().ensure_connection):
                super().ensure_connection()

    def validate_thread_sharing(self) -> None:
        # Django asks first if threads share the wrapper, which takes a lock. Its own thread may use it either way.
        if self._thread_ident != get_ident():  # type: ignore[attr-defined]
            super().validate_thread_sharing()

    def _cursor(self, name: str | None = None) -> Any:
        with self.use:
            cursor = super()._cursor(name)  # type: ignore[misc]
            lease = self.lease
            if lease is not None:
                lease.state = IN_USE
                if lease.thread_id != get_ident():
                    lease.change_holder()
            return cursor

    def make_debug_cursor(self, cursor: Any) -> Any:
        note_log()
        return super().make_debug_cursor(cursor)

    def _commit(self) -> None:
        use(self, super()._commit)  # type: ignore[misc]

    def _rollback(self) -> None:
        use(self, super()._rollback)  # type: ignore[misc]

    def _set_autocommit(self, autocommit: bool) -> None:
        set_autocommit = super()._set_autocommit  # type: ignore[misc]

        def in_use() -> None:
            if self.connection is None:  # idle until now, it was returned after Django had looked
                self.connect()
            set_autocommit(autocommit)
            # Django does this next; but in between the connection would seem to be idle, and might be taken.
            self.autocommit = autocommit

        use(self, in_use)

    def is_usable(self) -> bool:
        is_usable = super().is_usable

        def in_use() -> bool:
            # What was returned by _close() alone is still in ``connection``, and somebody else's to ask.
            if self.connection is None or (self.pool_options is not None and self.lease is None):
                return False
            answers = is_usable()
            if not answers and self.lease is not None:
                self.lease.note_death()
            return answers

        return use(self, in_use)

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        if self.is_connecting and self.connection.get_autocommit() == autocommit:
            # A warm session comes as the settings want it; the driver knows that without asking.
            self.autocommit = autocommit
            if autocommit:
                run_waiting_hooks(self)
            return
        lease = self.lease
        try:
            if self.release is None or not self.release.set_autocommit(self, autocommit):
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

    # Returning

    def _close(self) -> None:
        with self.use:
            if self.lease is None:
                super()._close()  # type: ignore[misc]
            else:
                checkin.check_in_lease(self, self.lease)
        if unsaid and not self.in_atomic_block:
            checkin.tell_closed(self)

    check_in = checkin.check_in

    def close(self) -> None:
        if self.release is None:
            super().close()
        else:
            self.release.close(self, super().close)
        if self.connection is None and self.lease is not None:
            # Somebody has set ``connection`` to None, and Django saw nothing to close.
            self._close()

    def get_autocommit(self) -> bool:
        lease = self.lease
        if lease is None or self.connection is None or lease.pool.is_abandoned or lease.scope is not current_scope():
            if self.release is not None and self.release.knows_autocommit(self):
                return self.autocommit
            return super().get_autocommit()
        # Django asks it of a connection that may be dead, when it tidies up for instance: that one is not replaced for it.
        return self.autocommit

    def close_if_unusable_or_obsolete(self) -> None:
        if self.connection is None and self.release is None:
            return  # most often: it is asked of each wrapper, twice for each request
        super().close_if_unusable_or_obsolete()
        if self.release is None or not self.is_parked:
            return
        if self.release.keeps_connection(self) or self.run_commit_hooks_on_set_autocommit_on:
            self.close()

    def temporary_connection(self) -> Any:
        # Django closes a wrapper that it found without a connection.
        if self.release is not None and self.release.keeps_connection(self):
            return self.cursor()
        return super().temporary_connection()

    check_in_if_idle = checkin.check_in_if_idle

    # What Django knows about the server

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        pool = self.pool
        if pool is None:
            return super().mysql_server_data
        return server_data(self, pool, lambda: super(PooledDatabaseMixin, self).mysql_server_data)


def pool_of(wrapper: PooledWrapper, conn_params: dict[str, Any]) -> Pool:
    """The pool for these parameters; looked up again only if they, or the process, are others than last time."""
    what = (conn_params, wrapper.isolation_level, wrapper.settings_dict["AUTOCOMMIT"])
    if wrapper.bound is None or wrapper.bound[0] != what or wrapper.bound[1].is_abandoned:
        assert wrapper.pool_options is not None
        wrapper.bound = (what, pool_for(wrapper, conn_params, wrapper.pool_options))
    return wrapper.bound[1]
