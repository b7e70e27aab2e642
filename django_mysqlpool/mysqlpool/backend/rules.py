"""Rules for values: of the pool's options, and of those options of the driver whose mistakes it does not explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The values that an option accepts: a predicate, and the words for the error."""

    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_events(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple))
        and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and callable(pair[0]) and isinstance(pair[1], str)
            for pair in value
        )
    )


_SECONDS = Rule(lambda v: _is_number(v) and v >= 0, "a number of seconds, 0 or more")
_COUNT = Rule(lambda v: _is_whole(v) and v >= 0, "a whole number, 0 or more")
_BOOLEAN = Rule(lambda v: isinstance(v, bool), "True or False")
_WHOLE_SECONDS = Rule(lambda v: _is_whole(v) and v >= 0, "a whole number of seconds")
_SECONDS_OR_NONE = Rule(lambda v: v is None or _SECONDS.accepts(v), "None or a number of seconds, 0 or more")

RULES: dict[str, Rule] = {
    "pool_size": _COUNT,
    "max_overflow": Rule(lambda v: _is_whole(v) and v >= -1, "a whole number, 0 or more, or -1 for no limit"),
    "timeout": _SECONDS,
    "use_lifo": _BOOLEAN,
    "max_waiting": Rule(lambda v: v is None or _COUNT.accepts(v), "None or a whole number, 0 or more"),
    "idle_timeout": _SECONDS,
    "min_idle": _COUNT,
    "recycle": Rule(
        lambda v: v is None or v == -1 or (_is_number(v) and v > 0),
        "a number of seconds above 0, -1 for no limit, or None to follow the server's wait_timeout",
    ),
    "ping_after": _SECONDS,
    "pre_ping": _BOOLEAN,
    "reset": Rule(lambda v: v in ("dirty", "always"), "'dirty' or 'always'"),
    "release": Rule(lambda v: v in ("request", "transaction"), "'request' or 'transaction'"),
    "leak_after": Rule(lambda v: v is None or (_is_number(v) and v > 0), "None or a number of seconds above 0"),
    "discard_on_error": Rule(
        lambda v: v is None or isinstance(v, str), "None or the dotted path of a function (error, alias)"
    ),
    "reset_on_return": Rule(
        lambda v: v in ("rollback", True, None, False),
        "'rollback' or None (what was left open is rolled back in any case, never committed)",
    ),
    "use_threadlocal": _BOOLEAN,
    "echo": Rule(lambda v: v is None or isinstance(v, bool) or v == "debug", "True, False or 'debug'"),
    "logging_name": Rule(lambda v: v is None or isinstance(v, str), "None or a string"),
    "events": Rule(_are_events, "a list of pairs (function, name of an event of SQLAlchemy's pools)"),
}

#: Options whose wrong types a driver refuses without their names ("an integer is required"), by the driver's name.
DRIVER_RULES: dict[str, dict[str, Rule]] = {
    "mysqlclient": dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _WHOLE_SECONDS),
    "PyMySQL": {
        "connect_timeout": Rule(lambda v: _is_number(v) and v > 0, "a number of seconds above 0"),
        **dict.fromkeys(("read_timeout", "write_timeout"), _SECONDS_OR_NONE),
    },
}
#: Names of all these options.
DRIVER_OPTIONS = ("connect_timeout", "read_timeout", "write_timeout")


def mistakes(where: str, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> Iterator[str]:
    """Yield a sentence for each value that is wrong.

    :param where: the name of ``values`` in the settings
    """
    for key, value in values.items():
        rule = rules.get(key)
        if rule is not None and not rule.accepts(value):
            yield f"{where}[{key!r}] is {value!r}; it must be {rule.words}."


def event_names() -> list[str]:
    """The names of the events of SQLAlchemy's pools. This imports SQLAlchemy."""
    from sqlalchemy.pool.events import PoolEvents

    return sorted(name for name, value in vars(PoolEvents).items() if callable(value) and not name.startswith("_"))
