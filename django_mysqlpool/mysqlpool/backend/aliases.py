"""The aliases of ``DATABASES``: which pool each of them leads to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import ref

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import load_backend

from django_mysqlpool.mysqlpool.log import say
from django_mysqlpool.mysqlpool.masking import ConnectionParams
from django_mysqlpool.mysqlpool.pool.maintenance import maintenance
from django_mysqlpool.mysqlpool.pool.registry import registry

from . import settings
from .pooled import PooledWrapper

if TYPE_CHECKING:
    from django.db.backends.mysql.base import DatabaseWrapper

    from django_mysqlpool.mysqlpool.options import PoolOptions
    from django_mysqlpool.mysqlpool.pool.pool import Pool

#: Not part of an identity: a password may rotate, and a user of the server has one.
_SECRETS = {"password", "passwd"}


def copied(settings_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Settings to compare with later, when they may have been changed in their place; they show no password."""
    return ConnectionParams({**settings_dict, "OPTIONS": {**settings_dict["OPTIONS"]}})


def identity_of(wrapper: DatabaseWrapper, params: Mapping[str, Any], options: PoolOptions) -> dict[str, Any]:
    """The identity of a pool."""
    return {
        **{key: value for key, value in params.items() if key not in _SECRETS},
        "wrapper": type(wrapper),
        "isolation_level": wrapper.isolation_level,
        "autocommit": wrapper.settings_dict["AUTOCOMMIT"],
        "pool": options,
    }


class LastConnect(NamedTuple):
    """What the last wrapper of an alias knew once it was connected: one in a new thread need not find it out again."""

    wrapper_class: type
    options: PoolOptions | None
    #: The settings then.
    settings: dict[str, Any]
    #: What the pool was looked up for.
    wanted: tuple[Any, ...]
    pool: ref[Pool]


#: By the alias.
last_connects: dict[str, LastConnect] = {}


class Aliases:
    """The aliases that lead to a pool, or have led there, and the settings by which each does."""

    def __init__(self, identity: Mapping[str, Any], pool_name: str) -> None:
        self._identity = identity
        self._pool_name = pool_name
        #: ``None``: an alias leads elsewhere now, or has led here by settings of a single wrapper's own.
        self._settings: dict[str, dict[str, Any] | None] = {}

    def __contains__(self, alias: object) -> bool:
        return alias in self._settings

    def names(self) -> list[str]:
        return list(self._settings.copy())

    def is_wanted(self) -> bool:
        """True if an alias leads here, as far as is known."""
        return any(then is not None and alias in connections.settings for alias, then in self._settings.copy().items())

    def is_left(self) -> bool:
        """True if every alias that has led here has been removed."""
        return all(alias not in connections.settings for alias in self.names())

    def note(self, wrapper: DatabaseWrapper) -> bool:
        """An alias leads here now.

        :returns: ``False`` if it does so only for this wrapper, which has settings of its own
        """
        alias, settings_dict = wrapper.alias, wrapper.settings_dict
        if connections.settings.get(alias) != settings_dict:
            self._settings.setdefault(alias, None)
            return False
        self._settings[alias] = copied(settings_dict)
        return True

    def leave(self, alias: str) -> None:
        """An alias leads elsewhere now."""
        if alias in self._settings:
            self._settings[alias] = None

    def refresh(self) -> None:
        """Check if aliases whose settings have been changed still lead here."""
        for alias, then in self._settings.copy().items():
            now = connections.settings.get(alias)
            if then is None or now is None or now == then:
                continue
            maintenance.hand_over()
            try:
                is_still = self._wrapper(alias) is not None
            except Exception as error:
                say(logging.INFO, "Pool %s: alias '%s' is as good as removed: %s", self._pool_name, alias, error)
                is_still = False
            self._settings[alias] = copied(now) if is_still else None

    def borrower(self) -> tuple[Any, dict[str, Any]] | None:
        """A wrapper for an alias that leads here, and its connection parameters."""
        wrapper = next(filter(None, map(self._wrapper, sorted(self.names()))), None)
        return None if wrapper is None else (wrapper, wrapper.get_connection_params())

    def _wrapper(self, alias: str) -> Any:
        """A wrapper for an alias as the settings are now, if they lead here."""
        if alias not in connections.settings:
            return None
        wrapper: Any = connections.create_connection(alias)
        options = getattr(wrapper, "pool_options", None)
        if options is None or identity_of(wrapper, wrapper.get_connection_params(), options) != self._identity:
            return None
        return wrapper


def pool_for(wrapper: DatabaseWrapper, params: Mapping[str, Any], options: PoolOptions) -> Pool:
    """The pool for connections with these parameters and options; made if there is none yet."""
    identity = identity_of(wrapper, params, options)
    pool = registry.find(identity)
    if pool is None:
        forget_unwanted()
        pool = registry.find_or_make(identity, _name(params), partial(_make, identity, options))
    if _aliases_of(pool).note(wrapper):
        for other in registry.pools():
            if other is not pool:
                _aliases_of(other).leave(wrapper.alias)
    return pool


def _aliases_of(pool: Pool) -> Aliases:
    return cast("Aliases", pool.aliases)  # which _make() has given it


def import_pool() -> type[Pool]:
    """Import what a pool needs, SQLAlchemy above all.

    That takes as long as all of Django: a command that never connects goes without, and a process that serves requests does
    it before the first one, and before it forks.
    """
    from django_mysqlpool.mysqlpool.pool.pool import Pool

    return Pool


def _make(identity: Mapping[str, Any], options: PoolOptions, name: str) -> Pool:
    hook = settings.DiscardHook(name, options.discard_on_error)
    return import_pool()(name, identity, options, Aliases(identity, name), maintenance, hook)


def _name(params: Mapping[str, Any]) -> str:
    """The name of a pool: ``user@host:port/database``."""
    place = params.get("unix_socket") or f"{params.get('host', 'localhost')}:{params.get('port', 3306)}"
    return f"{params.get('user', '')}@{place}/{params.get('database', '')}"


def refuse_wrong_options() -> None:
    """Raise the error about the first alias whose options are wrong, for a server that starts.

    :raises django.core.exceptions.ImproperlyConfigured: if there is one
    """
    if django_settings.configured:  # an application of another framework may come first
        for alias in filter(_is_pooled_engine, connections):
            cast("PooledWrapper", connections[alias]).refuse_wrong_options()


def are_all_pooled() -> bool:
    """True if each alias of ``DATABASES`` is pooled."""
    return all(map(_is_pooled, tuple(connections.settings.values())))


def _is_pooled(entry: Mapping[str, Any]) -> bool:
    return _has_pool(entry["ENGINE"]) and entry["OPTIONS"].get("pool", True) is not False


def _is_pooled_engine(alias: str) -> bool:
    return _has_pool(connections.settings[alias]["ENGINE"])


@cache
def _has_pool(engine: str) -> bool:
    try:
        return issubclass(load_backend(engine).DatabaseWrapper, PooledWrapper)
    except ImproperlyConfigured:  # which Django tells where the alias is used
        return False


def forget_unwanted() -> None:
    """Forget options and pools that no alias leads to any more."""
    settings.forget_all_but(connections.settings)
    registry.forget_unwanted()
    for alias, last in last_connects.copy().items():
        if last.pool() is None or alias not in connections.settings:
            last_connects.pop(alias, None)


maintenance.after_round.append(forget_unwanted)
