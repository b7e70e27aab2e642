"""Threads that have a connection in hand for a moment, while neither the queue nor a lease tells of it."""

from __future__ import annotations

from weakref import ref


class Transit:
    """From before a thread takes an idle slot until its lease is made, or from a lease's end until its slot is back.

    The thread sets ``is_under_way`` in its ``try`` and resets it in the ``finally``: no interrupt comes between an assignment
    and what is next to it. (That the thread's frame has ended tells nothing: whoever keeps an exception keeps all the frames
    that it came through, and what they hold.)
    """

    __slots__ = ("__weakref__", "is_under_way")

    def __init__(self) -> None:
        self.is_under_way = False


class Transits:
    """The transits of a pool.

    A thread may stand still in the middle of one for as long as a busy machine likes, so no time tells that a slot is lost.
    """

    def __init__(self) -> None:
        # (The callback is no Python code: nothing can interrupt it.)
        self._transits: set[ref[Transit]] = set()

    def new(self) -> Transit:
        """Make a transit, which the caller begins and ends."""
        transit = Transit()
        self._transits.add(ref(transit, self._transits.discard))
        return transit

    def are_under_way(self) -> bool:
        """True if any thread is in the middle of one."""
        transits = [known() for known in self._transits.copy()]
        return any(transit is not None and transit.is_under_way for transit in transits)
