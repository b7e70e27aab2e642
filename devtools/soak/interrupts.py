"""Exceptions that a signal's handler raises, anywhere in what a worker's main thread does: signals reach only that one."""

from __future__ import annotations

import _weakrefset
import logging
import signal
import traceback
import weakref
from collections.abc import Callable
from random import Random
from types import FrameType

from devtools.soak.records import DONE, VIOLATION, Recorder

#: Seconds until an interrupt, at least and at most: less than a transfer takes, and more than a pool lets it wait.
SOONEST, LATEST = 0.0001, 0.05
#: Of the calls, so many are interrupted: an interrupt costs a connection.
PART = 0.5
#: Seconds until it is tried again, where Python itself would swallow it.
AGAIN = 0.0005
#: Whose callbacks and handlers print an exception, and go on; and destructors.
_SWALLOWING_FILES = {logging.__file__, weakref.__file__, _weakrefset.__file__}
_SWALLOWING_NAMES = {"__del__", "wrapper_is_gone"}


class SoftLimit(Exception):
    """Of the kind of Celery's ``SoftTimeLimitExceeded``."""


class Abort(BaseException):
    """Of the kind of ``KeyboardInterrupt``."""


INTERRUPTS = (SoftLimit, Abort)


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt that an error has come upon: Django's ``atomic()`` may have one of its own as it ends."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, INTERRUPTS):
        behind = behind.__context__
    return behind


class Interrupter:
    """Interrupts calls of the main thread, each once at most, and sees that the interrupt reaches the caller."""

    def __init__(self, recorder: Recorder, chance: Random) -> None:
        self.record = recorder.record
        self.chance = chance
        self._is_armed = False
        self._raised: BaseException | None = None
        self._place = ""
        signal.signal(signal.SIGALRM, self._interrupt)

    def call(self, function: Callable[[], object]) -> None:
        """Call it, and interrupt that unless it ends first."""
        self._raised = caught = None
        try:
            try:
                self._is_armed = self.chance.random() < PART
                signal.setitimer(signal.ITIMER_REAL, SOONEST * (LATEST / SOONEST) ** self.chance.random())
                function()
            finally:
                self._is_armed = False
        except INTERRUPTS as error:
            caught = error
        if caught is not self._raised:
            told = f"{self._raised!r} was raised in the main thread, and {caught!r} reached the caller"
            self.record(VIOLATION, f"{told}:\n{self._place}")
        elif caught is not None:
            self.record(DONE, f"interrupt by a signal ({type(caught).__name__})")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._is_armed:
            return
        if is_swallowed_by_python(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return
        self._is_armed = False
        self._place = "".join(traceback.format_stack(frame))
        self._raised = self.chance.choice(INTERRUPTS)()
        raise self._raised


def is_swallowed_by_python(frame: FrameType | None) -> bool:
    """Whether Python, and not the package, would print an exception that is raised here: a log's, a destructor's."""
    while frame is not None:
        if frame.f_code.co_filename in _SWALLOWING_FILES or frame.f_code.co_name in _SWALLOWING_NAMES:
            return True
        frame = frame.f_back
    return False
