"""The options of a pool: where they stand in the settings, what they may be, and what to say where they are wrong.

``OPTIONS["pool"]`` of an alias goes before ``MYSQLPOOL_ARGUMENTS``, which goes before the defaults. Nothing here opens
a connection; what can be refused is refused here, when the first wrapper of an alias is made.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy.pool
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .queue import SlotPool

DEFAULT_POOL_CLASS = "QueuePool"

# What SQLAlchemy's classes take and this package gives them itself.
_GIVEN = {"self", "creator", "dialect"}


@dataclass(frozen=True)
class PoolOptions:
    """The checked options of one alias; equal options on equal connection parameters share a pool."""

    pool_class: type[sqlalchemy.pool.Pool]
    #: The arguments for ``pool_class``, less ``creator``.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds that a connection may live; ``None``: derived from the server's ``wait_timeout``; -1: no limit.
    recycle: float | None = None
    #: Idle longer than this many seconds: one ping at checkout.
    ping_after: float = 30
    #: ``"dirty"`` or ``"always"``: which sessions are reset at checkin.
    reset: str = "dirty"
    #: ``"request"``: a connection stays with its thread until the request or the work ends; ``"transaction"``: until the
    #: transaction ends, or the statement outside of one.
    release: str = "request"
    #: Seconds after which a connection that is still out is logged; ``None``: never.
    leak_after: float | None = None
    #: Asked of each error of a statement: whether to discard its connection; ``None`` leaves it to the pool.
    discard_on_error: Callable[[Exception, str], bool | None] | None = None
    #: What ``use_threadlocal`` of SQLAlchemy 1.x was set to; it has no effect, a system check says so.
    use_threadlocal: bool = False

    @property
    def pool_class_name(self) -> str:
        """The name as the settings have it: ``QueuePool`` is served by our subclass of it."""
        return "QueuePool" if self.pool_class is SlotPool else self.pool_class.__name__


@dataclass(frozen=True)
class _Rule:
    """What a value may be, in code and in the words of an error."""

    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SECONDS = _Rule(lambda v: _is_number(v) and v >= 0, "a number of seconds, 0 or more")
_COUNT = _Rule(lambda v: _is_whole(v) and v >= 0, "a whole number, 0 or more")
_BOOLEAN = _Rule(lambda v: isinstance(v, bool), "True or False")

_RULES: dict[str, _Rule] = {
    "pool_size": _COUNT,
    "max_overflow": _Rule(lambda v: _is_whole(v) and v >= -1, "a whole number, 0 or more, or -1 for no limit"),
    "timeout": _SECONDS,
    "use_lifo": _BOOLEAN,
    "max_waiting": _Rule(lambda v: v is None or _COUNT.accepts(v), "None or a whole number, 0 or more"),
    "idle_timeout": _SECONDS,
    "min_idle": _COUNT,
    "recycle": _Rule(
        lambda v: v is None or v == -1 or (_is_number(v) and v > 0),
        "a number of seconds above 0, -1 for no limit, or None to follow the server's wait_timeout",
    ),
    "ping_after": _SECONDS,
    "pre_ping": _BOOLEAN,
    "reset": _Rule(lambda v: v in ("dirty", "always"), "'dirty' or 'always'"),
    "release": _Rule(lambda v: v in ("request", "transaction"), "'request' or 'transaction'"),
    "leak_after": _Rule(lambda v: v is None or (_is_number(v) and v > 0), "None or a number of seconds above 0"),
    "discard_on_error": _Rule(
        lambda v: v is None or isinstance(v, str), "None or the dotted path of a function (error, alias)"
    ),
    "reset_on_return": _Rule(
        lambda v: v in ("rollback", True, None, False),
        "'rollback' or None (what was left open is rolled back in any case, never committed)",
    ),
    "use_threadlocal": _BOOLEAN,
}

# The package's own keys; all others go to the pool class.
_OWN = {"recycle", "ping_after", "pre_ping", "reset", "release", "leak_after", "discard_on_error", "use_threadlocal"}


def pool_options(alias: str, settings_dict: Mapping[str, Any]) -> PoolOptions | None:
    """The options of an alias, or ``None`` where ``OPTIONS["pool"]`` is ``False`` and it is not to be pooled.

    Raises ``ImproperlyConfigured`` with alias, key, value and what would be right.
    """
    given = settings_dict["OPTIONS"].get("pool", True)
    if given is False:
        return None
    backend = getattr(settings, "MYSQLPOOL_BACKEND", None)
    arguments = getattr(settings, "MYSQLPOOL_ARGUMENTS", None)
    max_age = settings_dict.get("CONN_MAX_AGE", 0)
    inputs = (
        dict(given) if isinstance(given, Mapping) else given,
        backend,
        dict(arguments) if isinstance(arguments, Mapping) else arguments,
        max_age,
    )
    remembered = _remembered.get(alias)
    if remembered is None or remembered[0] != inputs:
        # A wrapper is made for each thread; its settings are checked once.
        remembered = _remembered[alias] = (inputs, _Reader(alias).read(*inputs))
    return remembered[1]


_remembered: dict[str, tuple[tuple[Any, ...], PoolOptions]] = {}


class _Reader:
    """Reads and checks the options of one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def read(self, given: Any, backend: Any, arguments: Any, max_age: Any) -> PoolOptions:
        if max_age != 0:
            # The words of Django's PostgreSQL backend, for the same mistake.
            raise self._error(
                "Pooling doesn't support persistent connections.",
                f"CONN_MAX_AGE is {max_age!r}; leave it out or set it to 0. "
                "How long a connection lives is the pool's 'recycle'.",
            )
        own = self._mapping("OPTIONS['pool']", {} if given is True or given is None else given, "True, False or a dict")
        common = self._mapping("MYSQLPOOL_ARGUMENTS", arguments or {}, "a dict")
        default_class = self._pool_class("MYSQLPOOL_BACKEND", backend or DEFAULT_POOL_CLASS)
        pool_class = default_class
        if "pool_class" in own:
            pool_class = self._pool_class("OPTIONS['pool']['pool_class']", own.pop("pool_class"))
        self._check("MYSQLPOOL_ARGUMENTS", common, default_class)
        self._check("OPTIONS['pool']", own, pool_class)
        # An alias with a class of its own takes from MYSQLPOOL_ARGUMENTS what that class knows.
        values = {k: v for k, v in common.items() if k in _known_keys(pool_class)} | own
        return self._build(pool_class, values)

    def _build(self, pool_class: type[sqlalchemy.pool.Pool], values: dict[str, Any]) -> PoolOptions:
        own = {key: values.pop(key) for key in _OWN & values.keys()}
        if own.get("discard_on_error") is not None:
            own["discard_on_error"] = self._function("discard_on_error", own["discard_on_error"])
        if own.pop("pre_ping", False):
            own["ping_after"] = 0
        # Sessions are cleaned by this package; SQLAlchemy's rollback would be a round trip for nothing.
        values.setdefault("reset_on_return", None)
        if values["reset_on_return"] is False:
            values["reset_on_return"] = None
        try:
            # Making a pool opens nothing; it is how the class itself checks what it is given.
            pool_class(lambda: None, **values)  # type: ignore[arg-type]
        except Exception as error:
            raise self._error(f"{pool_class.__name__} refuses its arguments: {error}") from error
        return PoolOptions(pool_class=pool_class, arguments=values, **own)

    def _mapping(self, where: str, value: Any, words: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(f"{where} is {value!r}; it must be {words}.")
        return dict(value)

    def _pool_class(self, where: str, value: Any) -> type[sqlalchemy.pool.Pool]:
        found = self._find_class(where, value)
        if not (isinstance(found, type) and issubclass(found, sqlalchemy.pool.Pool)):
            raise self._error(f"{where} is {value!r}, which is not a pool class of SQLAlchemy.")
        if getattr(found, "_is_asyncio", False) is True:
            raise self._error(f"{where} is {value!r}, a pool for asyncio drivers; mysqlclient is not one. Use 'QueuePool'.")
        return SlotPool if found is sqlalchemy.pool.QueuePool else found

    def _find_class(self, where: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "." not in value:
            if value in _class_names():
                return getattr(sqlalchemy.pool, value)
            raise self._error(
                f"{where} is {value!r}, which sqlalchemy.pool does not have."
                f"{_nearest(value, _class_names())} Use one of {', '.join(_class_names())}, "
                "or the dotted path of a class."
            )
        try:
            return import_string(value)
        except ImportError as error:
            raise self._error(f"{where} is {value!r}, which can't be imported: {error}.") from error

    def _function(self, key: str, path: str) -> Callable[..., Any]:
        try:
            found = import_string(path)
        except ImportError as error:
            raise self._error(f"{key} is {path!r}, which can't be imported: {error}.") from error
        if not callable(found):
            raise self._error(f"{key} is {path!r}, which is not a function.")
        return found  # type: ignore[no-any-return]

    def _check(self, where: str, values: dict[str, Any], pool_class: type[sqlalchemy.pool.Pool]) -> None:
        known = _known_keys(pool_class)
        for key, value in values.items():
            if key not in known:
                name = "QueuePool" if pool_class is SlotPool else pool_class.__name__
                raise self._error(
                    f"{where} has the key {key!r}, which {name} does not know."
                    f"{_nearest(key, known)} Known keys: {', '.join(sorted(known))}."
                )
            rule = _RULES.get(key)
            if rule is not None and not rule.accepts(value):
                raise self._error(f"{where}[{key!r}] is {value!r}; it must be {rule.words}.")

    def _error(self, *sentences: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(" ".join((*sentences, f"(database alias {self.alias!r})")))


@cache
def _class_names() -> tuple[str, ...]:
    """The pool classes of the SQLAlchemy at hand that a synchronous driver can use."""
    return tuple(
        sorted(
            name
            for name, value in vars(sqlalchemy.pool).items()
            if isinstance(value, type) and issubclass(value, sqlalchemy.pool.Pool) and value is not sqlalchemy.pool.Pool
        )
    )


def _known_keys(pool_class: type[sqlalchemy.pool.Pool]) -> frozenset[str]:
    """What may be set for a class: the package's own keys and the arguments of its constructors."""
    keys = set(_OWN)
    for cls in pool_class.__mro__:
        if "__init__" in vars(cls) and issubclass(cls, sqlalchemy.pool.Pool):
            parameters = inspect.signature(cls.__init__).parameters.values()
            keys |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return frozenset(key for key in keys - _GIVEN if not key.startswith("_"))


def _nearest(word: object, known: Iterable[str]) -> str:
    """A hint at the nearest known word, whatever the case: other pools have their options in capitals."""
    by_lower_case = {one.lower(): one for one in known}
    matches = difflib.get_close_matches(str(word).lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[matches[0]]!r}?" if matches else ""
