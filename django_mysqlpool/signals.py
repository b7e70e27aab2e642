"""Signals about the pools of this process.

Each is sent by ``send_robust()``, with the class ``Pool`` as the sender, when nothing is in the middle of anything: a
moment after the event, by any thread that runs no event loop. So a receiver may use the ORM; of the connections that it
opens and closes itself nobody is told, for that would go on for ever. Nothing is spent on a signal that nobody receives.
(Django logs what a receiver raises, an interrupt that is an ``Exception`` among it, such as Celery's soft time limit.)

All of them have ``pool``, its name as in ``pool_status()``, and ``aliases``, the database aliases that lead to it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from django.dispatch import Signal

from django_mysqlpool.mysqlpool.log import here, unsaid
from django_mysqlpool.mysqlpool.pool import events


class PoolSignal(Signal):
    """A signal about an event of pools.

    :param kind: the kind of event
    :param facts: of the event, those that receivers are told
    """

    def __init__(self, kind: str, *facts: str) -> None:
        super().__init__()
        self._facts = facts
        self._kind = kind

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect a receiver, as Django's ``Signal.connect()`` does."""
        super().connect(*args, **kwargs)
        events.observe(self._put_off, self._kind)

    def _put_off(self, kind: str, pool: Any, facts: dict[str, Any]) -> None:
        """Have the signal sent when a receiver may use the ORM."""
        if self.receivers and not here.is_telling:
            told = {name: facts[name] for name in self._facts}
            unsaid.append(
                partial(self._send, sender=type(pool), pool=pool.name, aliases=sorted(pool.aliases.names()), **told)
            )

    def _send(self, **facts: Any) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.send_robust(**facts)
        else:  # neither the ORM nor an asynchronous receiver can be used here: the next thread that comes sends it
            unsaid.append(partial(self._send, **facts))


#: A connection has been opened: ``seconds`` that it took.
connection_opened = PoolSignal("opened", "seconds")
#: A connection has been closed: the ``reason``, as in ``pool_statistics()``.
connection_closed = PoolSignal("closed", "reason")
#: A checkout had to wait for a connection, and has one now: the ``alias``, and ``seconds`` that it took.
checkout_waited = PoolSignal("wait", "alias", "seconds")
#: A checkout ends with a ``PoolTimeout``: the ``alias``, and the ``error``.
checkout_timed_out = PoolSignal("timeout", "alias", "error")
#: A connection has been out for longer than ``leak_after``: the ``alias``, the name of the ``thread``, and ``seconds``.
leak_detected = PoolSignal("leak", "alias", "thread", "seconds")
#: A connection has been opened to another server than the last one: ``before`` and ``after``, each address and version.
server_changed = PoolSignal("server_changed", "before", "after")
