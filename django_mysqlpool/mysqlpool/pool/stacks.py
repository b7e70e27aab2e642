"""The stack of a checkout, formatted so that a person finds the line to change."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from traceback import StackSummary
from types import CodeType, FrameType, ModuleType

import asgiref
import django

#: Checkouts outside any scope of which a thread keeps the stacks in any case. One that has returned so many connections
#: rarely forgets one, and a stack costs more than anything else in a checkout.
FIRST = 20
#: Frames of a checkout's stack that are kept, the innermost.
DEPTH = 40
_DEPTHS = range(DEPTH)

# Of files: what stands between a checkout and the code that asked for the connection, or starts threads, or runs tests; and
# then by how well a place in them tells people where to look.
_MACHINERY, _DJANGO, _SCRIPT, _LIBRARY, _OWN = range(5)
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
# Test runners, and what puts itself around connections and cursors.
_AROUND = re.compile(
    r"[/\\](site|dist)-packages[/\\](_?pytest\w*|pluggy|xdist|execnet|hypothesis|nose\w*|sentry_sdk|opentelemetry|ddtrace|"
    r"newrelic|elasticapm|scout_apm|wrapt|debug_toolbar|silk|django_prometheus)[/\\.]"
)


def _folder_of(module: ModuleType, *inner: str) -> str:
    return str(Path(str(module.__file__)).parent.joinpath(*inner)) + os.sep


_STANDARD_LIBRARY = (_folder_of(os), sysconfig.get_path("stdlib") + os.sep, "<frozen ")
_MACHINERY_FOLDERS = (
    str(Path(__file__).parents[2]) + os.sep,
    *(_folder_of(django, inner) for inner in ("db", "utils", "test")),
    _folder_of(asgiref),
    sysconfig.get_path("scripts") + os.sep,
)
_DJANGO_FOLDER = _folder_of(django)
_COMMANDS = _folder_of(django, "core", "management") + "__init__.py"


@lru_cache(maxsize=2048)
def _rank(filename: str) -> int:
    if filename.startswith(_MACHINERY_FOLDERS) or _AROUND.search(filename):
        return _MACHINERY
    if filename.startswith(_DJANGO_FOLDER):
        return _DJANGO
    if _INSTALLED.search(filename):
        return _LIBRARY
    return _MACHINERY if filename.startswith(_STANDARD_LIBRARY) else _OWN


#: A checkout's stack, the innermost frame first: the code of each, and the instruction that it had come to, by its offset.
#: No frame, and so no variable, is kept alive by it.
Stack = tuple[tuple[CodeType, int], ...]


class _Memory:
    """Of this process: what it has learned about the need of stacks."""

    def __init__(self) -> None:
        #: A connection was forgotten of which nobody knew the place: since then all stacks are kept.
        self.keeps_all = False


memory = _Memory()


def stack_of_caller() -> Stack:
    """The stack; the numbers and the texts of its lines are looked up only when it is told.

    Each frame that is looked at costs Python an object. The caller has the two between it and Django left out.
    """
    frame: FrameType | None = sys._getframe(3)
    stack: list[tuple[CodeType, int]] = []
    for _ in _DEPTHS:
        if frame is None:
            break
        stack.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(stack)


def _line_of(code: CodeType, offset: int) -> int:
    lines = (line for begin, end, line in code.co_lines() if line is not None and begin <= offset < end)
    return next(lines, code.co_firstlineno)


def format_stack(stack: Stack) -> str:
    """The stack as a traceback shows one, down to the code that asked Django for the connection."""
    entries = [
        (code.co_filename, _line_of(code, offset), code.co_name, None)
        for code, offset in reversed(_without_machinery(stack))
    ]
    return "".join(StackSummary.from_list(entries).format()).rstrip()


def _without_machinery(stack: Stack) -> Stack:
    """The stack less the frames of ours and Django's in which the checkout happened."""
    inner = next((n for n, (code, _) in enumerate(stack) if _rank(code.co_filename) != _MACHINERY), 0)
    return stack[inner:]


def format_place(stack: Stack) -> str:
    """The place in the user's code at which a checkout happened."""
    # Out from the checkout, up to what manage.py calls: a site's manage.py is in the stack of whatever a command does.
    inside = takewhile(lambda entry: not _runs_command(entry[0]), _without_machinery(stack))
    code, offset = max(inside, key=_rank_of_place, default=stack[0])
    return f"{code.co_filename}:{_line_of(code, offset)}, in {code.co_name}"


def _runs_command(code: CodeType) -> bool:
    return code.co_filename == _COMMANDS and code.co_name != "call_command"


def _rank_of_place(entry: tuple[CodeType, int]) -> int:
    code, _ = entry
    rank = _rank(code.co_filename)
    # The script that started a library's loop is no better a place than what the library calls.
    return _SCRIPT if rank == _OWN and code.co_name == "<module>" else rank
