"""The options of a pool, as they are after they were checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The checked options of one alias. Aliases with equal options and equal connection parameters share a pool."""

    #: The class of SQLAlchemy's, or the user's; ``None``: our own ``SlotPool``.
    pool_class: type[Any] | None = None
    #: The arguments for ``pool_class``, without ``creator``.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds that a connection may live. ``None``: follows the server's ``wait_timeout``; -1: no limit.
    recycle: float | None = None
    #: Seconds of idleness after which a checkout pings the connection. 0: every checkout does.
    ping_after: float = 30
    #: Which sessions are reset at checkin: ``"dirty"`` ones, or ``"always"`` all.
    reset: str = "dirty"
    #: When a connection returns. ``"request"``: at the end of the request or the unit of work; ``"transaction"``: at the
    #: end of the transaction, or of the statement outside of one.
    release: str = "request"
    #: Seconds after which a connection that is still out is logged. ``None``: never.
    leak_after: float | None = None
    #: Dotted path of a function that decides for each error of a statement if its connection is closed. ``None``: the pool
    #: decides. It is a path because the module may need models, which are not loaded yet when options are read.
    discard_on_error: str | None = None
    #: The value of ``use_threadlocal``, an option of SQLAlchemy 1.x. It has no effect, and a system check reports it.
    use_threadlocal: bool = False

    #: The name of the class in the settings: ``QueuePool`` for our own ``SlotPool``.
    pool_class_name: str = "QueuePool"

    @property
    def releases_per_transaction(self) -> bool:
        """True if a connection is returned between statements."""
        return self.release == "transaction"
