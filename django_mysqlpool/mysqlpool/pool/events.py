"""The events of pools, for observers outside the core: monitoring, a tool bar, signals.

An observer is called by the thread that the event happens in, in the middle of a checkout or a checkin. So it takes no lock
that is held elsewhere, does not use the database, and does not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Is called with the kind of the event, the pool, and the facts that belong to that kind.
Observer = Callable[[str, Any, dict[str, Any]], None]

#: The observers of each kind of event, and the facts that they are told:
#:
#: - ``checkout``: ``lease``, which is its scope's by now
#: - ``checkin``: ``lease``, ``seconds`` that it was out, ``keep``: the connection stays open
#: - ``wait``: ``alias``, ``seconds``: a checkout had to wait, and has its connection now
#: - ``timeout``: ``alias``, ``error``, which is a ``PoolTimeout``
#: - ``pin``: ``reason``
#: - ``reset``: ``seconds``, ``reason``: the kind of the statement that made it necessary
#: - ``opened``: ``session``, ``seconds``
#: - ``closed``: ``session``, ``reason``
#: - ``leak``: ``lease``, ``alias``, the name of its ``thread``, ``seconds`` that it has been out
#: - ``server_changed``: ``before`` and ``after``, each an address and a version
observers: dict[str, list[Observer]] = {
    kind: []
    for kind in (
        "checkout",
        "checkin",
        "wait",
        "timeout",
        "pin",
        "reset",
        "opened",
        "closed",
        "leak",
        "server_changed",
    )
}


def observe(observer: Observer, *kinds: str) -> None:
    """Have an observer called at each event of these kinds; once, however often it is asked for."""
    for kind in kinds:
        if observer not in observers[kind]:
            observers[kind].append(observer)


def ignore(observer: Observer) -> None:
    """Call an observer no more."""
    for listening in observers.values():
        if observer in listening:
            listening.remove(observer)


def emit(pool: Any, kind: str, /, **facts: Any) -> None:
    """Tell the observers of an event."""
    for observer in tuple(observers[kind]):
        observer(kind, pool, facts)
