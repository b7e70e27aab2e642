"""Reads and checks the options of a pool, and calls the function that one of them names.

``OPTIONS["pool"]`` of an alias takes precedence over ``MYSQLPOOL_ARGUMENTS``, and that over the defaults. Options are
checked when the first wrapper of an alias is made. Nothing here opens a connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_mysqlpool.mysqlpool import compat
from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.options import PoolOptions

from .other_names import suggest
from .rules import DRIVER_OPTIONS, DRIVER_RULES, RULES, event_names, mistakes

DEFAULT_POOL_CLASS = "QueuePool"

#: The names of all options of our own pool.
OPTION_NAMES = frozenset(RULES)
# SQLAlchemy has to be asked for the names of its events.
_KNOWN_WITHOUT_SQLALCHEMY = OPTION_NAMES - {"events"}

# For the driver's options that are not set; None is a value.
_UNSET = (...,) * len(DRIVER_OPTIONS)

# The package's own keys. All others are arguments of the pool class.
_OWN = {"recycle", "ping_after", "pre_ping", "reset", "release", "leak_after", "discard_on_error", "use_threadlocal"}


def pool_options(alias: str, settings_dict: Mapping[str, Any], driver: str = "mysqlclient") -> PoolOptions | None:
    """Read and check the options of an alias.

    :param alias: the database alias, for messages
    :param settings_dict: the alias' entry of ``DATABASES``
    :param driver: the driver's name, as ``Driver.name`` has it; its timeouts are checked too
    :returns: the options; ``None`` if ``OPTIONS["pool"]`` is ``False``, that is, if the alias is not pooled
    :raises django.core.exceptions.ImproperlyConfigured: if an option is wrong. The message names alias, key, value and the
        accepted values.
    """
    options = settings_dict["OPTIONS"]
    if type(options) is not dict and not isinstance(options, Mapping):
        told = None if options is None else f"a {type(options).__name__}"
        del settings_dict, options  # they may have a password, and error pages show this frame's variables
        raise ImproperlyConfigured(f"OPTIONS is {told}; it must be a dict. (database alias {alias!r})")
    given = options.get("pool", True)
    if given is False:
        return None
    timeouts = _UNSET if options.keys().isdisjoint(DRIVER_OPTIONS) else tuple(map(options.get, DRIVER_OPTIONS, _UNSET))
    site = compat.settings_object()
    backend = getattr(site, "MYSQLPOOL_BACKEND", None)
    arguments = getattr(site, "MYSQLPOOL_ARGUMENTS", None)
    max_age = settings_dict.get("CONN_MAX_AGE", 0)
    del settings_dict, options  # likewise
    inputs: tuple[Any, ...] = (given, backend, arguments, max_age, timeouts)
    remembered = _remembered.get(alias)
    if remembered is None or remembered[0] != inputs:
        # Each thread has a wrapper of its own, but the settings are only checked once.
        inputs = tuple(dict(value) if isinstance(value, Mapping) else value for value in inputs)
        remembered = _remembered[alias] = (inputs, _Reader(alias, driver).read(*inputs))
    return remembered[1]


#: By the alias: what its options were read from, in copies, and the options.
_remembered: dict[str, tuple[tuple[Any, ...], PoolOptions]] = {}


def function_at(path: str) -> Callable[..., Any]:
    """Import the function that an option names.

    :param path: the function's dotted path
    :raises TypeError: if the path names something that can't be called
    :raises Exception: any error of the import
    """
    found = import_string(path)
    if not callable(found):
        raise TypeError(f"it is not a function but {found!r}")
    return found  # type: ignore[no-any-return]


class DiscardHook:
    """The user's function of the option ``discard_on_error``.

    :param path: its dotted path; ``None``: there is none
    """

    def __init__(self, pool_name: str, path: str | None) -> None:
        self._pool_name = pool_name
        self._path = path
        #: It could not be imported, which has been logged.
        self._is_broken = False

    def __call__(self, error: Exception, alias: str) -> bool | None:
        """Ask it about an error.

        :returns: ``True``: the connection is to be discarded; ``False``: it is not; ``None``: the pool decides
        """
        if self._path is None or self._is_broken:
            return None
        try:
            hook: Callable[[Exception, str], bool | None] = function_at(self._path)
        except Exception as trouble:
            # While Django loads the applications, it may be that it can't be imported yet.
            self._is_broken = apps.ready
            if apps.ready:
                words = "Pool %s: discard_on_error can't be imported, and is not heeded: %s"
                say(logging.ERROR, words, self._pool_name, self._path, error=trouble)
            return None
        try:
            return hook(error, alias)
        except Exception as trouble:
            say(logging.ERROR, "Pool %s: discard_on_error failed, and is not heeded.", self._pool_name, error=trouble)
            return None


def forget_all_but(aliases: Collection[str]) -> None:
    """Forget the remembered options of all other aliases."""
    if len(_remembered) > len(aliases):
        for alias in _remembered.keys() - tuple(aliases):
            _remembered.pop(alias, None)


class _Reader:
    """Reads and checks the options of one alias. What is wrong is told in one error."""

    def __init__(self, alias: str, driver: str) -> None:
        self.alias = alias
        self.driver = driver
        self._mistakes: list[str] = []

    def read(self, given: Any, backend: Any, arguments: Any, max_age: Any, timeouts: tuple[Any, ...]) -> PoolOptions:
        if max_age != 0:
            # The words of Django's PostgreSQL backend, for the same mistake.
            self._mistakes.append(
                "Pooling doesn't support persistent connections. "
                f"CONN_MAX_AGE is {max_age!r}; leave it out or set it to 0. "
                "How long a connection lives is the pool's 'recycle'."
            )
        of_driver = {key: value for key, value in zip(DRIVER_OPTIONS, timeouts, strict=True) if value is not ...}
        self._mistakes.extend(mistakes("OPTIONS", of_driver, DRIVER_RULES[self.driver]))
        own = self._mapping("OPTIONS['pool']", {} if given is True or given is None else given, "True, False or a dict")
        common = self._mapping("MYSQLPOOL_ARGUMENTS", arguments or {}, "a dict")
        if backend in (None, "", DEFAULT_POOL_CLASS) and own.keys() | common.keys() <= _KNOWN_WITHOUT_SQLALCHEMY:
            # All of it is known here, without SQLAlchemy, which is imported with the first pool.
            self._check_values(common, own)
            return self._options(None, {**common, **own})
        return self._of_class(own, common, backend or DEFAULT_POOL_CLASS)

    def _check_events(self, where: str, values: dict[str, Any]) -> None:
        """Look for names of events that SQLAlchemy does not have: its error would name neither alias nor key."""
        events = values.get("events")
        if events and RULES["events"].accepts(events):
            known = event_names()
            self._mistakes.extend(
                f"{where}['events'] names the event {name!r}, which SQLAlchemy's pools do not have."
                f"{suggest(name, known)} Known events: {', '.join(known)}."
                for _, name in events
                if name not in known
            )

    def _check_values(self, common: dict[str, Any], own: dict[str, Any]) -> None:
        self._mistakes.extend(mistakes("MYSQLPOOL_ARGUMENTS", common, RULES))
        self._mistakes.extend(mistakes("OPTIONS['pool']", own, RULES))
        if self._mistakes:
            raise self._error()

    def _of_class(self, own: dict[str, Any], common: dict[str, Any], backend: Any) -> PoolOptions:
        """The options of a pool class that has to be looked at."""
        default_class = self._pool_class("MYSQLPOOL_BACKEND", backend)
        pool_class = default_class
        if "pool_class" in own:
            pool_class = self._pool_class("OPTIONS['pool']['pool_class']", own.pop("pool_class"))
        self._check_keys("MYSQLPOOL_ARGUMENTS", common, default_class)
        self._check_keys("OPTIONS['pool']", own, pool_class)
        self._check_events("MYSQLPOOL_ARGUMENTS", common)
        self._check_events("OPTIONS['pool']", own)
        self._check_values(common, own)
        # If an alias has a class of its own, only the keys of MYSQLPOOL_ARGUMENTS that this class knows apply to it.
        known = pool_classes().known_keys(pool_class) | _OWN
        options = self._options(pool_class, {k: v for k, v in common.items() if k in known} | own)
        try:
            pool_classes().make(pool_class, options.arguments)
        except Exception as error:
            raise self._error(f"{options.pool_class_name} refuses its arguments: {error}") from error
        return options

    @staticmethod
    def _options(pool_class: type[Any] | None, values: dict[str, Any]) -> PoolOptions:
        own = {key: values.pop(key) for key in _OWN & values.keys()}
        if own.pop("pre_ping", False):
            own["ping_after"] = 0
        # This package cleans sessions itself, so SQLAlchemy's rollback would be a useless round trip.
        values["reset_on_return"] = values.get("reset_on_return") or None
        return PoolOptions(pool_class=pool_class, pool_class_name=_name_of(pool_class), arguments=values, **own)

    def _mapping(self, where: str, value: Any, words: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(f"{where} is {value!r}; it must be {words}.")
        return dict(value)

    def _pool_class(self, where: str, value: Any) -> type[Any] | None:
        """The class that a setting names; ``None``: our own."""
        classes = pool_classes()
        found = self._find_class(where, value)
        if not classes.is_pool_class(found):
            raise self._error(f"{where} is {value!r}, which is not a pool class of SQLAlchemy.")
        if classes.is_asyncio(found):
            raise self._error(f"{where} is {value!r}, a pool for asyncio drivers; mysqlclient is not one. Use 'QueuePool'.")
        return None if classes.is_default(found) else found

    def _find_class(self, where: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "." not in value:
            by_name = pool_classes().by_name()
            if value in by_name:
                return by_name[value]
            names = [name for name, found in by_name.items() if not pool_classes().is_asyncio(found)]
            raise self._error(
                f"{where} is {value!r}, which sqlalchemy.pool does not have."
                f"{suggest(value, names)} Use one of {', '.join(names)}, or the dotted path of a class."
            )
        try:
            return import_string(value)
        except ImportError as error:
            raise self._error(f"{where} is {value!r}, which can't be imported: {error}.") from error

    def _check_keys(self, where: str, values: dict[str, Any], pool_class: type[Any] | None) -> None:
        known = pool_classes().known_keys(pool_class) | _OWN
        for key in values:
            if key not in known:
                told = " That is the setting MYSQLPOOL_BACKEND." if key == "pool_class" else suggest(key, known)
                self._mistakes.append(
                    f"{where} has the key {key!r}, which {_name_of(pool_class)} does not know."
                    f"{told} Known keys: {', '.join(sorted(known))}."
                )

    def _error(self, *sentences: str) -> ImproperlyConfigured:
        """An error that tells these mistakes, and those before."""
        return ImproperlyConfigured(" ".join((*self._mistakes, *sentences, f"(database alias {self.alias!r})")))


def _name_of(pool_class: type[Any] | None) -> str:
    return DEFAULT_POOL_CLASS if pool_class is None else pool_class.__name__


def pool_classes() -> Any:
    """The module that knows SQLAlchemy's pool classes, and imports them."""
    return import_module("django_mysqlpool.mysqlpool.pool.pool_classes")
