"""Django's own receivers of a request's signals, put aside while they have nothing to do.

``reset_queries`` empties the logs of the thread's wrappers, which ``DEBUG`` fills. ``close_old_connections`` closes
connections that are past their age, and a pooled one that is still out always is. So where every alias is pooled, nothing
is logged and each connection is taken in a scope, which returns it, they find nothing, three times for each request. Under
WSGI that takes a fiftieth of a short request. Under ASGI, Django calls those of ``request_started`` in the request's
thread, which takes a change of threads and back; and so does ``response.close()``, as long as that of ``request_finished``
is connected.

They are put back, for good, as soon as there may be something to do for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections, reset_queries
from django.dispatch import Signal

from django_mysqlpool.mysqlpool.pool.locks import acquire_within
from django_mysqlpool.mysqlpool.pool.registry import registry

from .aliases import are_all_pooled
from .scope import current_scope

Connected = tuple[Signal, Callable[..., Any]]

#: Seconds to wait for another thread that holds the lock of a signal.
MAX_WAIT = 0.1
#: In the order in which Django calls them.
_AT_START: tuple[Connected, ...] = ((request_started, reset_queries), (request_started, close_old_connections))
_AT_END: tuple[Connected, ...] = ((request_finished, close_old_connections),)


class Receivers:
    """What is known of the receivers in this process."""

    def __init__(self) -> None:
        #: Some are put aside. (Each request under ASGI looks at it.)
        self.are_aside = False
        #: All are, so nobody returns a connection that is taken in no scope. (Each request, and each such checkout, looks
        #: at it.)
        self.are_all_aside = False
        #: A connection was taken in no scope, so that of ``request_finished`` is put aside no more.
        self.is_end_wanted = False
        #: Then those of ``request_started`` are wanted too: the requests' threads work in no scope of ours.
        self.is_start_wanted_with_end = False
        #: There has been something to do, so nothing is put aside any more.
        self.are_wanted = False
        #: Those that were connected when they were put aside.
        self.found: list[Connected] = []
        #: The aliases then, all of them pooled.
        self.aliases: list[str] = []


receivers = Receivers()


def await_first_request() -> None:
    """Put all aside at the first request that Django's WSGI handler serves.

    The test client's requests come from another handler: the connections of tests are Django's to see to.

    :raises django.core.exceptions.ImproperlyConfigured: if the setting ``MYSQLPOOL_REPLACE_RECEIVERS`` is wrong
    """
    may_replace = getattr(settings, "MYSQLPOOL_REPLACE_RECEIVERS", True)
    if not isinstance(may_replace, bool):
        raise ImproperlyConfigured(f"MYSQLPOOL_REPLACE_RECEIVERS is {may_replace!r}; it must be True or False.")
    if may_replace:
        from django.core.handlers.wsgi import WSGIHandler  # and much of Django's, which not every command needs

        request_started.connect(_put_all_aside, sender=WSGIHandler)


def _put_all_aside(sender: object, **_: Any) -> None:
    """Put all aside. Those of ``request_started``, connected before this one, have been called for this request."""
    request_started.disconnect(_put_all_aside, sender)
    # A scope around the request goes on after it, and only Django's receivers return what is taken in it meanwhile.
    if current_scope() is None and _may_have_nothing_to_do():
        receivers.is_start_wanted_with_end = receivers.are_all_aside = True
        _put_aside((*_AT_START, *_AT_END))
        _put_back_if_unscoped()


def put_aside() -> None:
    """Put all aside, for ``ConnectionReleaseASGI``, in whose scope the request's thread works.

    So those of ``request_started`` stay aside, whatever other threads do.
    """
    if _may_have_nothing_to_do():
        _put_aside(_AT_START)
        if not receivers.is_end_wanted:
            receivers.are_all_aside = True
            _put_aside(_AT_END)
            _put_back_if_unscoped()


def _may_have_nothing_to_do() -> bool:
    # (Another framework's application may come before Django's settings; it sends no signals of Django's.)
    return settings.configured and not (receivers.are_wanted or settings.DEBUG) and are_all_pooled()


def _put_aside(connected: Iterable[Connected]) -> None:
    receivers.aliases, receivers.are_aside = [*connections.settings], True
    for pair in connected:
        signal, receiver = pair
        if pair not in receivers.found:
            receivers.found.append(pair)  # first: an interrupt must not lose it
            if not signal.disconnect(receiver):
                receivers.found.remove(pair)


def _put_back_if_unscoped() -> None:
    # First they are put aside and then this looks, as a checkout in no scope does the two the other way round: one of them
    # sees the other.
    if receivers.are_wanted or receivers.is_end_wanted or _are_unscoped_out():
        _put_back_for_unscoped()


def _are_unscoped_out() -> bool:
    leases = (lease for pool in registry.pools() if not pool.is_abandoned for lease in pool.reclaimer.leases())
    return any(lease.is_connected and lease.scope is None for lease in leases)


def put_back() -> None:
    """Connect them again, and put them aside no more in this process: there is something to do for them, or may be."""
    receivers.are_wanted = True
    if _connect(receivers.found):
        receivers.are_aside = receivers.are_all_aside = False


def _connect(found: list[Connected]) -> bool:
    """Connect some of them again.

    :returns: ``False`` if that has to wait: the garbage collector may be calling, in the middle of a signal's send(). Then
        the next request sees that they are wanted.
    """
    if _is_held_here(request_started.lock) or _is_held_here(request_finished.lock):
        return False
    for signal, receiver in reversed(found):
        signal.connect(receiver)
        _move_to_front(signal, receiver)
    return True


def _is_held_here(lock: Any) -> bool:
    """True if this thread holds the lock of a signal, as far as can be told: others hold it for microseconds."""
    held: list[Any] = []
    try:
        return not acquire_within(MAX_WAIT, lock, held)
    finally:
        for its_lock in held:
            its_lock.release()


def _move_to_front(signal: Signal, receiver: Callable[..., Any]) -> None:
    """Have a receiver called before all others: what they take is for the request, and not to be closed before it."""
    with signal.lock:
        signal.receivers = sorted(signal.receivers, key=lambda entry: entry[0][0] != id(receiver))


def put_back_if_wanted() -> None:
    """Once for each request: there may be another alias by now, which is not pooled."""
    if receivers.are_wanted or (receivers.aliases != [*connections.settings] and not are_all_pooled()):
        put_back()
    elif receivers.is_end_wanted and receivers.are_all_aside:  # they could not be put back at once
        _put_back_for_unscoped()


def note_unscoped() -> None:
    """A connection is out, or Django's state is other than a new connection's, on behalf of no scope."""
    if receivers.are_all_aside:
        _put_back_for_unscoped()


def _put_back_for_unscoped() -> None:
    receivers.is_end_wanted = True
    if receivers.is_start_wanted_with_end:
        put_back()
    elif _connect([pair for pair in receivers.found if pair in _AT_END]):
        receivers.are_all_aside = False


def note_log() -> None:
    """A query is logged.

    Under ASGI they are put back before the next request, not now: a test that counts queries has disconnected
    ``reset_queries`` meanwhile. (Under WSGI the connection that it takes for that has brought them back before.)
    """
    receivers.are_wanted = True
    if receivers.are_all_aside:
        put_back()
