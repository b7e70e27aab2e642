"""Threads that have a connection in hand for a moment, while neither the queue nor a lease tells of it."""

from __future__ import annotations

from weakref import ref


class _Transit:
    """From before a thread takes an idle slot until its lease is made, or from a lease's end until its slot is back."""

    __slots__ = ("__weakref__",)


class Transits:
    """The transits of a pool that are under way.

    A thread may stand still in the middle of one for as long as a busy machine likes, so no time tells that a slot is lost.
    A transit ends with the frame that holds it, an interrupted one too.
    """

    def __init__(self) -> None:
        # (The callback is no Python code: nothing can interrupt it.)
        self._under_way: set[ref[_Transit]] = set()

    def begin(self) -> _Transit:
        """Begin a transit, which lasts as long as the caller keeps the returned object."""
        transit = _Transit()
        self._under_way.add(ref(transit, self._under_way.discard))
        return transit

    def are_under_way(self) -> bool:
        """True if any thread is in the middle of one."""
        return bool(self._under_way)
