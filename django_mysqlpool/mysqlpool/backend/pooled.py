"""What a pooled wrapper knows, beside what Django's does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import NO_DB_ALIAS

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.pool.borrowing import Borrower, BorrowerReference, borrower_is_gone
from django_mysqlpool.mysqlpool.pool.locks import WITH_HAS_A_GAP, RLock

from .settings import pool_options

if TYPE_CHECKING:
    from django.db.backends.mysql.base import DatabaseWrapper

    from django_mysqlpool.mysqlpool.drivers.base import Driver
    from django_mysqlpool.mysqlpool.options import PoolOptions
    from django_mysqlpool.mysqlpool.pool.connection import Lease
    from django_mysqlpool.mysqlpool.pool.pool import Pool

    class _Base(DatabaseWrapper, Borrower):
        health_check_done: bool
        health_check_enabled: bool

else:
    _Base = object


class ReleasePolicy(Protocol):
    """Decides if a connection may be somebody else's between two statements."""

    #: ``hold_connection`` blocks that are open.
    holds: int
    #: A transaction is begun for Django, and not yet on the server.
    is_deferred: bool
    #: The scope that Django's state belongs to while no lease does.
    scope: Any

    def is_pinned(self, wrapper: PooledWrapper, lease: Lease) -> bool:
        """True if the connection has to stay between statements, though nothing is being done with it."""

    def note_pin(self, wrapper: PooledWrapper, lease: Lease) -> None:
        """Count a lease that stays."""

    def note_parked(self, wrapper: PooledWrapper, lease: Lease) -> None:
        """The connection was checked in between two statements."""


class PooledWrapper(_Base):
    """The state of a pooled wrapper. The modules of this package read and change it, under ``use``."""

    #: Django's attributes fill what Python keeps in the object itself; with ours among them each wrapper would get a dict.
    __slots__ = (
        "bound",
        "is_connecting",
        "is_parked",
        "known_facts",
        "lease",
        "pool_options",
        "reference",
        "release",
        "settings_then",
        "unscoped_checkouts",
        "use",
        "wrong_options",
    )

    #: The driver's module is ``Database`` in Django's backend.
    driver: Driver
    #: Makes the policy of ``release = "transaction"``.
    transaction_release: Callable[[], ReleasePolicy]
    #: No class but Django's and ours has a say in how it connects.
    is_plain = False

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        super().__init__(settings_dict, alias)
        del settings_dict  # an error about the options shows this frame's variables
        #: What is wrong with the options, if that is told when the wrapper is asked to connect.
        self.wrong_options: str | None = None
        #: ``None``: not pooled, as is Django's connection without a database, which creates and drops test databases.
        self.pool_options: PoolOptions | None = None
        if alias != NO_DB_ALIAS:
            self._read_options()
        is_per_transaction = self.pool_options is not None and self.pool_options.releases_per_transaction
        #: ``None``: the connection stays until the request ends, or Django closes it.
        self.release: ReleasePolicy | None = self.transaction_release() if is_per_transaction else None
        self.lease: Lease | None = None
        #: Checkouts so far that were in no scope.
        self.unscoped_checkouts = 0
        #: No connection is checked out, and Django does not have to know: its state is that of a connected wrapper.
        self.is_parked = False
        #: Django's ``connect()`` is at work.
        self.is_connecting = False
        #: The settings at the last ``connect()``, if that was to a pool.
        self.settings_then: dict[str, Any] | None = None
        #: The last pool, and what it was looked up for.
        self.bound: tuple[tuple[Any, ...], Pool] | None = None
        #: What Django knows about the server: the same object as the pool's while it is up to date.
        self.known_facts: dict[str, Any] | None = None
        if WITH_HAS_A_GAP:
            compat.replace_thread_sharing_lock(self, RLock())
        #: Held while anything is done with the connection.
        self.use = RLock()
        self.reference = reference = BorrowerReference(self, borrower_is_gone)
        reference.alias, reference.use, reference.lease = alias, self.use, None

    def _read_options(self) -> None:
        try:
            self.pool_options = pool_options(self.alias, self.settings_dict, self.driver.name)
        except ImproperlyConfigured as error:
            from .refusal import is_told_later

            if not is_told_later():
                raise
            self.wrong_options = str(error)

    def refuse_wrong_options(self) -> None:
        """Raise the error about the options, if they are wrong.

        :raises django.core.exceptions.ImproperlyConfigured: if they are
        """
        if self.wrong_options is not None:
            from .refusal import WrongOptions

            raise WrongOptions(self.wrong_options)

    def is_of_this_thread(self) -> bool:
        """True if the calling thread has made it."""
        return self._thread_ident == threading.get_ident()  # type: ignore[attr-defined, no-any-return]

    def is_in_shared_block(self) -> bool:
        # For the pool. Each checkin calls the function itself: Python finds methods of a wrapper slowly.
        return is_in_shared_block(self)


def is_in_shared_block(wrapper: PooledWrapper) -> bool:
    """True if a transaction is open that any thread may go on with (Django's ``inc_thread_sharing()``)."""
    return (wrapper.in_atomic_block or not wrapper.autocommit) and wrapper.allow_thread_sharing


def forget_connection(wrapper: PooledWrapper) -> None:
    """Be as if the wrapper had never connected; the connection itself is somebody else's to see to.

    There is no call in between, at which an interrupt could come.
    """
    release = wrapper.release
    wrapper.lease = None
    wrapper.is_parked = True
    wrapper.connection = None
    wrapper.in_atomic_block = False
    # (To make an empty list costs more than to look at one.)
    if wrapper.savepoint_ids:
        wrapper.savepoint_ids = []
    if wrapper.atomic_blocks:
        wrapper.atomic_blocks = []
    wrapper.needs_rollback = False
    wrapper.closed_in_transaction = False
    if wrapper.run_on_commit:
        wrapper.run_on_commit = []
    wrapper.run_commit_hooks_on_set_autocommit_on = False
    wrapper.autocommit = wrapper.settings_dict["AUTOCOMMIT"]
    if release is not None:
        release.is_deferred, release.scope = False, None
