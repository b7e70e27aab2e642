"""Keeps passwords out of all that shows variables: Django's error page, its mail to ADMINS, Sentry, logs with locals."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from types import TracebackType
from typing import Any

#: Stands for a secret, as in Django's error page.
MASK = "*" * 20
#: Words in the name of a secret. (``auth_plugin`` is the name of a method.)
_SECRET = re.compile(
    r"pass|pwd|secret|token|key|credential|signature|cookie|private|api|auth(?!_?plugin)|identified", re.IGNORECASE
)


class _Names(dict[Any, bool]):
    """Of the names of parameters, whether they name a secret."""

    def __missing__(self, name: object) -> bool:
        is_secret = self[name] = isinstance(name, str) and _SECRET.search(name) is not None
        return is_secret


_is_secret = _Names()


class _Masked:
    """A value as any other, which does not show itself. A slice of it does not either: some cut before they show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK)

    # Sentry asks for this if it would take a string as it is.
    __sentry_repr__ = __repr__

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)  # type: ignore[misc]
        return type(self)(part) if isinstance(index, slice) else part  # type: ignore[call-arg]


class MaskedBytes(_Masked, bytes):
    """Bytes that do not show themselves, nor do longer ones that PyMySQL makes of them to send them."""

    __slots__ = ()

    def __add__(self, other: Any) -> MaskedBytes:
        return MaskedBytes(bytes(self) + other)

    def __radd__(self, other: Any) -> MaskedBytes:
        return MaskedBytes(other + bytes(self))


class MaskedStr(_Masked, str):
    """A string that does not show itself. It is in the drivers' frames too, whatever copies they make of the parameters."""

    __slots__ = ()

    def encode(self, *args: Any, **kwargs: Any) -> MaskedBytes:
        return MaskedBytes(super().encode(*args, **kwargs))


def _masked(value: Any) -> Any:
    if isinstance(value, str) and value:
        return MaskedStr(value)
    return MaskedBytes(value) if isinstance(value, bytes) and value else value


class ConnectionParams(dict[str, Any]):
    """Connection parameters whose ``repr()`` shows no secret, nor does that of their values, in whatever copies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in self.items():
            if isinstance(value, _Masked):
                continue
            if _is_secret[key]:
                self[key] = _masked(value)
            elif key == "init_command":  # SET PASSWORD = '...', SET @token = '...'
                if isinstance(value, str) and _SECRET.search(value):
                    self[key] = _masked(value)
            elif type(value) is dict and key != "conv":  # "ssl"; and Django's, of functions
                self[key] = ConnectionParams(value)

    def __repr__(self) -> str:
        return repr({key: MASK if _is_secret[key] and value else value for key, value in self.items()})

    __sentry_repr__ = __repr__


def masking_params(get_connection_params: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], ConnectionParams]:
    """The method of a user's engine, which may return any dict, with a password that it has just fetched for instance."""
    if getattr(get_connection_params, "masks", False):
        return get_connection_params  # type: ignore[return-value]

    @wraps(get_connection_params)
    def masked(self: Any) -> ConnectionParams:
        return ConnectionParams(get_connection_params(self))

    masked.masks = True  # type: ignore[attr-defined]
    return masked


class WithoutFramesOf:
    """Ends the tracebacks of the block's exceptions before the first frame of ``package``, whose variables tell secrets.

    What was being handled before the block keeps its own.
    """

    __slots__ = ("_outer", "_package")

    def __init__(self, package: str) -> None:
        self._package = package

    def __enter__(self) -> None:
        self._outer = sys.exc_info()[1]

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        seen = {id(None), id(self._outer)}
        pending = [error]
        while pending:
            one = pending.pop()
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                one.__traceback__ = self._up_to_package(one.__traceback__)
                pending += [one.__cause__, one.__context__]

    def _up_to_package(self, traceback: TracebackType | None) -> TracebackType | None:
        last, entry = None, traceback
        while entry is not None and not self._is_of_package(entry):
            last, entry = entry, entry.tb_next
        if last is None:
            return None
        last.tb_next = None
        return traceback

    def _is_of_package(self, entry: TracebackType) -> bool:
        return str(entry.tb_frame.f_globals.get("__name__")).partition(".")[0] == self._package
