"""What Django knows about the server of an alias: one wrapper reads it for all of its pool's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.utils.functional import cached_property

from django_mysqlpool.mysqlpool.pool.writes import VARIABLES, ServerState

from .pooled import PooledWrapper

if TYPE_CHECKING:
    from django_mysqlpool.mysqlpool.pool.pool import Pool


def server_data(wrapper: PooledWrapper, pool: Pool, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The pool's facts about its server; if it has none yet, have Django ``read`` them."""
    facts = pool.server.data
    if facts is None:
        with wrapper.use, wrapper.temporary_connection() as cursor:
            lease = wrapper.lease
            assert lease is not None
            # One session answers all of it; whoever wants it back gets it with the end of the cursor.
            return_requested, lease.return_requested = lease.return_requested, False
            try:
                state = lease.session.state
                facts = read()
                cursor.execute(VARIABLES.format(scope="SESSION"))
                pool.connector.note_server_data(facts, ServerState.of(cursor.fetchall()))
                lease.session.go_back_to(state)  # to read variables counts as dirty
            finally:
                lease.return_requested |= return_requested
    wrapper.known_facts = facts
    return facts


def forget_server(wrapper: PooledWrapper) -> None:
    """Drop what Django has derived from the server's facts: they are another server's."""
    if wrapper.known_facts is None:
        return
    wrapper.known_facts = None
    base = type(wrapper).__mro__
    for name in list(wrapper.__dict__):
        if any(isinstance(vars(cls).get(name), cached_property) for cls in base):
            del wrapper.__dict__[name]
    wrapper.features = wrapper.features_class(wrapper)
