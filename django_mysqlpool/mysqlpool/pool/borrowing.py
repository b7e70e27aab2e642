"""Protocols of those around a pool: who borrows a connection, for which unit of work, and who maintains pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

if TYPE_CHECKING:
    import threading

    from django_mysqlpool.mysqlpool.drivers.base import Driver


class Borrower(Protocol):
    """A wrapper of Django's, as far as a pool must know it."""

    alias: str
    driver: Driver
    reference: BorrowerReference
    #: The lease that it has.
    lease: Any

    @property
    def allow_thread_sharing(self) -> bool:
        """True if threads share it."""

    def get_connection_params(self) -> dict[str, Any]:
        """Tell how it connects."""

    def open_connection(self, conn_params: dict[str, Any]) -> Any:
        """Open a connection of the driver's."""

    def check_in_if_idle(self, lease: Any, by_force: bool = False, may_ask_server: bool = True) -> None:
        """Return the leased connection if nothing is being done with it."""

    def check_in(self) -> None:
        """Return the connection in whatever state it is."""

    def is_in_shared_block(self) -> bool:
        """True if a transaction is open that any thread may go on with."""


class BorrowerReference(ref[Borrower]):
    """A borrower, as long as it exists; and what is known of it afterwards."""

    __slots__ = ("alias", "lease", "use")

    alias: str
    #: Held while anything is done with the connection.
    use: threading.RLock
    #: The lease that it has.
    lease: Any


def borrower_is_gone(reference: BorrowerReference) -> None:
    """A borrower was dropped without returning its connection."""
    if reference.lease is not None:
        reference.lease.pool.reclaimer.take_from_nobody(reference.lease)


class LeaseScope(Protocol):
    """The scope of a lease: a request, or another unit of work."""

    has_ended: bool

    def is_left(self) -> bool:
        """True if nobody is there any more to end it."""

    def end(self) -> bool:
        """Return its leases."""

    def discard(self, lease: Any) -> None:
        """The lease is over."""

    def format_work(self) -> str | None:
        """Format the unit of work, for messages."""


class PoolAliases(Protocol):
    """The database aliases that lead to a pool, or have led there."""

    def __contains__(self, alias: object, /) -> bool: ...
    def names(self) -> list[str]: ...
    def is_wanted(self) -> bool:
        """True if one leads here, as far as is known."""

    def is_left(self) -> bool:
        """True if each has been removed."""

    def refresh(self) -> None:
        """Check if those whose settings have been changed still lead here."""

    def borrower(self) -> tuple[Borrower, dict[str, Any]] | None:
        """Somebody who could check a connection out, with the connection parameters; ``None``: no alias leads here."""


class Upkeep(Protocol):
    """The maintenance of all pools."""

    thread: threading.Thread | None

    def look_after(self, pool: Any) -> None:
        """Maintain a pool, from now on."""

    def hand_over(self) -> None:
        """The calling thread is about to wait for a server: if it is the maintenance thread, another one goes on."""


class LeaseLiveness(Protocol):
    """Decides if a connection is of further use, as its borrower knows it."""

    def is_alive(self, session: Any) -> bool: ...
    def note_error(self, lease: Any, error: Exception) -> None: ...
    def note_death(self, dead: Any) -> None: ...


class LeaseReclaimer(Protocol):
    """Reclaims what nobody will return."""

    def take_from_nobody(self, lease: Any) -> None: ...
    def close_stray(self, lease: Any) -> None: ...


class LeaseStatistics(Protocol):
    """Counts what happens in a pool."""

    def note_pin(self, reason: str) -> None: ...
    def note_reset(self, seconds: float, reason: str | None) -> None: ...


class LeasingPool(Protocol):
    """The pool of a lease, as its borrower knows it."""

    @property
    def is_abandoned(self) -> bool: ...
    @property
    def liveness(self) -> LeaseLiveness: ...
    def checkin(self, lease: Any, borrower: Borrower, discard: bool) -> None: ...
    @property
    def reclaimer(self) -> LeaseReclaimer: ...
    @property
    def statistics(self) -> LeaseStatistics: ...
