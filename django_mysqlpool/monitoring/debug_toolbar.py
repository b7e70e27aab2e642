"""A panel of Django Debug Toolbar with what a request did with its pools (the extra ``debug-toolbar``).

``DEBUG_TOOLBAR_PANELS = [..., "django_mysqlpool.monitoring.debug_toolbar.PoolPanel"]``
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.template import Context, Engine

from django_mysqlpool.mysqlpool.pool import events
from django_mysqlpool.mysqlpool.pool.stacks import format_place

try:
    from debug_toolbar import settings as toolbar_settings
    from debug_toolbar.panels import Panel
except ImportError as error:
    raise ImportError(
        f"django_mysqlpool.monitoring.debug_toolbar needs django-debug-toolbar: install the extra 'debug-toolbar' ({error})"
    ) from error

#: An engine of its own: the package need not be in ``INSTALLED_APPS``, where Django looks for templates.
_TEMPLATES = Engine(dirs=[str(Path(__file__).parent / "templates")])

#: Modules that stand between a view and its connection; hidden like those of the toolbar's ``HIDE_IN_STACKTRACES``.
_MACHINERY = ("django_mysqlpool", "django.utils.asyncio", "asgiref")

#: The panel of the request that runs in this context. Its tasks and its threads take the context along.
_current: ContextVar[PoolPanel | None] = ContextVar("django_mysqlpool_panel", default=None)


class _Line(NamedTuple):
    """Where a frame has come to; the frame itself, and so its variables, is not kept."""

    code: CodeType
    offset: int
    number: int


class _Event(NamedTuple):
    """An event of a pool. It is made into text when the request has ended."""

    kind: str
    pool: str
    #: Names and values of the facts that its kind has.
    details: list[tuple[str, str]]
    #: Seconds since the panel was enabled.
    after: float
    #: The innermost frame first.
    stack: list[_Line]


class PoolPanel(Panel):
    """Shows the checkouts, waits, resets and pins of a request, with the lines of code.

    Nothing is watched while no request with the panel runs. The panel does not show how ``ConnectionReleaseMiddleware``
    returns the request's connections, because that happens after the toolbar's middleware has ended.
    """

    title = "Connection pool"
    is_async = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._events: list[_Event] = []
        self._is_on = False
        self._began = 0.0
        #: The request's task, if it is an asynchronous one, and the thread of its event loop.
        self._task: asyncio.Task[Any] | None = None
        self._thread = 0

    # The toolbar calls these around a request.

    def enable_instrumentation(self) -> None:
        if self._is_on:
            return
        self._is_on = True
        self._began = monotonic()
        self._thread = threading.get_ident()
        try:
            self._task = asyncio.current_task()
        except RuntimeError:  # no event loop in this thread
            self._task = None
        _current.set(self)
        events.observe(self._observe, *events.observers)

    def disable_instrumentation(self) -> None:
        if not self._is_on:
            return
        self._is_on = False
        events.ignore(self._observe)
        _current.set(None)
        self._task = None

    def generate_stats(self, request: HttpRequest, response: HttpResponse) -> None:
        counts = Counter((event.pool, event.kind) for event in self._events)
        kinds = list(dict.fromkeys(event.kind for event in self._events))
        pools = dict.fromkeys(event.pool for event in self._events)
        self.record_stats(
            {
                "kinds": kinds,
                "pools": [{"name": pool, "counts": [counts[pool, kind] for kind in kinds]} for pool in pools],
                "totals": dict(Counter(event.kind for event in self._events)),
                "events": [_as_text(event) for event in self._events],
            }
        )

    # The toolbar shows these.

    @property
    def nav_subtitle(self) -> str:
        totals = self.get_stats().get("totals", {})
        shown = ("checkout", "wait", "reset", "pin", "timeout")
        return ", ".join(_counted(totals[kind], kind) for kind in shown if kind in totals) or "not used"

    @property
    def content(self) -> str:
        return _TEMPLATES.get_template("django_mysqlpool/debug_toolbar.html").render(Context(self.get_stats()))

    # Observing

    def _observe(self, kind: str, pool: Any, facts: dict[str, Any]) -> None:
        """Note an event of this request's. It may be in the middle of a checkout, so this asks nothing of anybody."""
        if self._is_on and _current.get() is self:
            self._events.append(_Event(kind, pool.name, _details(facts), monotonic() - self._began, self._stack()))

    def _stack(self) -> list[_Line]:
        config = toolbar_settings.get_config()
        if not config["ENABLE_STACKTRACES"]:
            return []
        hidden = (*_MACHINERY, *config["HIDE_IN_STACKTRACES"])
        return [
            _Line(frame.f_code, frame.f_lasti, frame.f_lineno)
            for frame in self._frames()
            if not _is_in(frame.f_globals.get("__name__", ""), hidden)
        ]

    def _frames(self) -> Iterator[FrameType]:
        """The frames of this thread, and those of the asynchronous view that waits for it; the innermost first."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__") == "asgiref.sync":
                # In a synchronous stack, async_to_sync() has the view run in another thread meanwhile.
                for value in frame.f_locals.values():
                    if inspect.iscoroutine(value):
                        yield from _frames_of(value)
            yield frame
            frame = frame.f_back
        if self._task is not None and threading.get_ident() != self._thread:
            yield from _frames_of(self._task.get_coro())


def _frames_of(coroutine: Any) -> list[FrameType]:
    """The frames of a suspended coroutine and of those that it awaits, the innermost first."""
    frames: list[FrameType] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.append(frame)
        coroutine = coroutine.cr_await
    return frames[::-1]


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _details(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of an event as text; it keeps no connection alive, as the facts themselves would."""
    found: list[tuple[str, str]] = []
    if "lease" in facts:
        found.append(("alias", facts["lease"].alias))
    for name, value in facts.items():
        if name == "seconds":
            found.append(("time", f"{value * 1000:.2f} ms"))
        elif isinstance(value, (str, tuple)):
            found.append((name, str(value)))
    return list(dict(found).items())


def _as_text(event: _Event) -> dict[str, Any]:
    """An event as JSON takes it, since the toolbar stores what it shows."""
    return {
        "kind": event.kind,
        "pool": event.pool,
        "milliseconds": event.after * 1000,
        "details": event.details,
        "place": format_place(tuple((line.code, line.offset) for line in event.stack)) if event.stack else "",
        "stack": [
            {
                "folder": str(Path(line.code.co_filename).parent),
                "file": Path(line.code.co_filename).name,
                "function": line.code.co_name,
                "number": line.number,
                "text": linecache.getline(line.code.co_filename, line.number).strip(),
            }
            for line in reversed(event.stack)
        ],
    }
