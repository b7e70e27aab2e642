"""Checks of what the server says: they connect, and run with ``manage.py check --database ALIAS`` and ``migrate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from django_mysqlpool.mysqlpool.options import PoolOptions

from .common import DOCS, pooled_aliases

#: Values of ``ssl_mode`` with which a connection must be encrypted.
_TLS_MODES = {"REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"}
#: Values with which it need not be, whatever else is set.
_LAX_MODES = {"DISABLED", "PREFERRED"}
#: Options of mysqlclient and PyMySQL that ask for encryption.
_TLS_OPTIONS = ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert", "ssl_verify_identity")


class _Server(NamedTuple):
    """The server's answers, about the session of this account."""

    max_connections: int
    #: The limit of the account; 0: it has none.
    max_user_connections: int
    #: Seconds.
    wait_timeout: int
    #: ``""``: the connection is not encrypted.
    cipher: str


@register(Tags.database)
def check_encryption(databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """Report connections in clear text, though the options ask for TLS (E005).

    MariaDB's Connector/C, with which mysqlclient is often built, connects without if the server has none.

    :param databases: the aliases to look at; Django passes it
    :param kwargs: not used
    :returns: one error for each such alias
    """
    return [
        Error(
            f"The connection of the database alias '{alias}' is not encrypted, though OPTIONS{asked}.",
            hint=(
                "The server offers no TLS, and the client library connects without. Passwords and rows can be read on the "
                f"way. Switch TLS on in the server. See {DOCS}#e005"
            ),
            id="django_mysqlpool.E005",
        )
        for alias, _ in _of(databases)
        if (asked := asks_for_tls(connections[alias].settings_dict["OPTIONS"])) and not _ask(alias).cipher
    ]


@register(Tags.database)
def check_limits(databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """Report a cap above the number of connections that the server, or the account, may have (W014).

    :param databases: the aliases to look at; Django passes it
    :param kwargs: not used
    :returns: one warning for each such alias
    """
    messages: list[CheckMessage] = []
    for alias, _ in _of(databases):
        server = _ask(alias)
        limits = {"max_connections": server.max_connections, "max_user_connections": server.max_user_connections}
        name, limit = min(((name, limit) for name, limit in limits.items() if limit), key=lambda pair: pair[1])
        cap = connections[alias].pool.status()["cap"]  # type: ignore[attr-defined]
        if cap is not None and cap > limit:
            messages.append(
                Warning(
                    f"The cap of the database alias '{alias}' is {cap} connections; the server allows {limit} ({name}).",
                    hint=(
                        "Each process may have so many. Lower pool_size and max_overflow, so that all processes together "
                        f"stay below the limit, or raise that. See {DOCS}#w014"
                    ),
                    id="django_mysqlpool.W014",
                )
            )
    return messages


@register(Tags.database)
def check_recycle(databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """Report a ``recycle`` above the server's ``wait_timeout`` (W015).

    :param databases: the aliases to look at; Django passes it
    :param kwargs: not used
    :returns: one warning for each such alias
    """
    return [
        Warning(
            f"recycle of the database alias '{alias}' is {options.recycle} s, and the server ends a session that was idle "
            f"for {server.wait_timeout} s (wait_timeout).",
            hint=(
                "The server is quicker than the pool, which finds a dead connection at checkout and opens another one. "
                f"Leave recycle out: it follows wait_timeout. See {DOCS}#w015"
            ),
            id="django_mysqlpool.W015",
        )
        for alias, options in _of(databases)
        if options.recycle is not None and options.recycle > (server := _ask(alias)).wait_timeout
    ]


def _of(databases: Sequence[str] | None) -> Iterator[tuple[str, PoolOptions]]:
    return ((alias, options) for alias, options in pooled_aliases() if alias in (databases or ()))


def _ask(alias: str) -> _Server:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT @@max_connections, @@max_user_connections, @@wait_timeout")
        numbers = cursor.fetchone()
        cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        row = cursor.fetchone()
    return _Server._make((*numbers, row[1] if row else ""))


def asks_for_tls(options: Mapping[str, Any]) -> str | None:
    """The words for the option that wants encryption; ``None``: none does."""
    mode = str(options.get("ssl_mode", "")).upper()
    if mode in _TLS_MODES:
        return f"['ssl_mode'] is {mode}"
    return next((f"['{name}'] is set" for name in _TLS_OPTIONS if options.get(name) and mode not in _LAX_MODES), None)
