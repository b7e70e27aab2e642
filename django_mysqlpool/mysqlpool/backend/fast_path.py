"""The way to a connection that lies ready, without Django's ``connect()``."""

from __future__ import annotations

from time import monotonic
from types import FunctionType
from typing import TYPE_CHECKING, Any
from weakref import ref

from django.db.backends.mysql.base import DatabaseWrapper
from django.db.backends.signals import connection_created

from django_mysqlpool.mysqlpool.compat import get_running_loop, is_owned
from django_mysqlpool.mysqlpool.pool import stacks
from django_mysqlpool.mysqlpool.pool.events import emit, observers
from django_mysqlpool.mysqlpool.pool.states import READY

from .aliases import LastConnect, copied, last_connects
from .checkin import check_in
from .pooled import PooledWrapper, forget_connection
from .receivers import note_unscoped, receivers
from .scope import current_scope
from .sequences import Sharing

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.connection import Lease

# (To look it up in the dict at each checkout would take longer.)
on_checkout = observers["checkout"]

#: Methods that Django calls to connect. A class that overrides one of these wants to be asked each time.
_OVERRIDABLE = frozenset(
    """
    check_settings connect ensure_connection get_connection_params get_new_connection init_connection_state set_autocommit
    """.split()
)


def _djangos_own(method: Any) -> FunctionType | None:
    """``method``, unless somebody has patched it already."""
    is_djangos = type(method) is FunctionType and method.__globals__["__name__"].startswith("django.")
    return method if is_djangos else None


#: Those of them that Django's ``connect()`` would still call, though the session is set up. If one differs later, somebody
#: has patched it, as Sentry does, and the fast path is off. (pytest-django's ``ensure_connection()`` refuses a connection.)
CHECK_SETTINGS = _djangos_own(DatabaseWrapper.check_settings)
CONNECT = _djangos_own(DatabaseWrapper.connect)
ENSURE_CONNECTION = _djangos_own(DatabaseWrapper.ensure_connection)
GET_CONNECTION_PARAMS = _djangos_own(DatabaseWrapper.get_connection_params)


def overrides_nothing(cls: type) -> bool:
    """True if no class but Django's and ours has a say in how a wrapper of ``cls`` connects."""
    others = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in {"django", "django_mysqlpool"}]
    return all(_OVERRIDABLE.isdisjoint(vars(other)) for other in others)


def resume(wrapper: PooledWrapper) -> bool:
    """Check out a connection that lies ready, if Django's ``connect()`` would change nothing else.

    That is so if no block, hook or connection is left of what was done with this wrapper, its settings are what they were
    when it connected, nobody listens for new connections, no code but Django's and ours has a say in it, and the session is
    set up.
    """
    if wrapper.settings_then != wrapper.settings_dict and not _take_over(wrapper):
        return False
    if (
        connection_created.receivers
        or get_running_loop() is not None  # where Django may refuse
        or DatabaseWrapper.check_settings is not CHECK_SETTINGS
        or DatabaseWrapper.connect is not CONNECT
        or DatabaseWrapper.ensure_connection is not ENSURE_CONNECTION
        or DatabaseWrapper.get_connection_params is not GET_CONNECTION_PARAMS
    ):
        return False
    if is_owned(wrapper.use):  # _cursor() has it
        return _check_out(wrapper)
    with wrapper.use:
        return _check_out(wrapper)


def _check_out(wrapper: PooledWrapper) -> bool:
    """Check the connection out, under ``use``.

    :returns: ``False`` if Django's ``connect()`` has to go on: without a lease, or with this one
    """
    # A thread that shares the wrapper may have been quicker.
    if wrapper.lease is not None or not (wrapper.is_parked or _forget_closed(wrapper)):
        return False
    (_, _, autocommit), pool = wrapper.bound  # type: ignore[misc]  # (it has been connected)
    try:
        wrapper.lease = lease = None if pool.is_abandoned else pool.checkout_idle(wrapper)
        if lease is None:
            return False
        if wrapper.release is not None:
            lease.sharing = Sharing()
        session = lease.session
        if (
            (wrapper.known_facts is not pool.server.data and wrapper.known_facts is not None)
            or session.state != READY
            or session.observed.get_autocommit() != autocommit
        ):
            return False
        wrapper.is_parked = False
        wrapper.errors_occurred = False
        wrapper.health_check_done = True
        wrapper.connection = session.connection
        count_in(wrapper, lease)
    except BaseException:
        check_in(wrapper)
        raise
    return True


def note_connected(wrapper: PooledWrapper) -> None:
    """Django has connected the wrapper to a pool."""
    assert wrapper.bound is not None
    if not wrapper.is_plain:  # its class wants to be asked each time
        return
    wrapper.settings_then = copied(wrapper.settings_dict)
    wanted, pool = wrapper.bound
    last_connects[wrapper.alias] = LastConnect(
        type(wrapper), wrapper.pool_options, wrapper.settings_then, wanted, ref(pool)
    )


def _take_over(wrapper: PooledWrapper) -> bool:
    """Have a wrapper that was never connected know what the last one of its alias knew.

    :returns: ``False`` if it was connected, or the last one was of another kind or had other settings
    """
    last = last_connects.get(wrapper.alias)
    pool = None if last is None else last.pool()
    if (
        last is None
        or pool is None
        or wrapper.settings_then is not None
        or last.wrapper_class is not type(wrapper)
        or last.options is not wrapper.pool_options
        or last.settings != wrapper.settings_dict
    ):
        return False
    wrapper.settings_then, wrapper.bound = last.settings, (last.wanted, pool)
    # What Django's connect() would set.
    _, wrapper.isolation_level, _ = last.wanted
    wrapper.health_check_enabled = wrapper.settings_dict["CONN_HEALTH_CHECKS"]
    wrapper.close_at = monotonic()  # CONN_MAX_AGE is 0
    return True


def _forget_closed(wrapper: PooledWrapper) -> bool:
    """Reset the state of a wrapper that was closed, as Django's ``connect()`` does first.

    :returns: ``False`` if a block, a hook or a connection is left
    """
    if (
        wrapper.connection is not None
        or wrapper.in_atomic_block
        or wrapper.run_on_commit
        or wrapper.run_commit_hooks_on_set_autocommit_on
    ):
        return False
    forget_connection(wrapper)
    return True


def note_set_up(wrapper: PooledWrapper, lease: Lease) -> None:
    """Django has set the session up."""
    # What receivers of connection_created have done is set-up too.
    lease.session.mark_set_up()
    if lease.statement is not None:
        lease.statement = lease.session.history.sequence = None
        if lease.sharing is not None:
            lease.sharing.sequence = None
    count_in(wrapper, lease)


def count_in(wrapper: PooledWrapper, lease: Lease) -> None:
    """The lease is ready for use: it is the current work's."""
    scope = current_scope()
    wants_stack = wrapper.pool_options.leak_after is not None  # type: ignore[union-attr]  # (it is pooled)
    if scope is not None:
        scope.add(lease)
    elif wrapper.unscoped_checkouts < stacks.FIRST or stacks.memory.keeps_all:
        wrapper.unscoped_checkouts += 1
        wants_stack = True
    if wants_stack:
        lease.stack = stacks.stack_of_caller()
    if lease.sharing is not None:
        lease.return_requested = True
    lease.is_connected = True
    if scope is None and receivers.are_all_aside:
        note_unscoped()
    if on_checkout:
        emit(lease.pool, "checkout", lease=lease)
