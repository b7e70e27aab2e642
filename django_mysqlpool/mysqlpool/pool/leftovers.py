"""Leftovers in a session that no reset clears."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_mysqlpool.mysqlpool.functions import is_mariadb

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_mysqlpool.mysqlpool.drivers.base import Rows

#: Ask how much a session holds that no reset clears, of what an account may see of its own: on MariaDB profiles, which are
#: kept while ``profiling`` is on, and a role other than its account's default; on MySQL traces, and the role. (Only
#: accounts with privileges are told of a resource group.)
_LEFT_ON_MARIADB = b"""
    SELECT @@profiling + (SELECT COUNT(*) FROM information_schema.PROFILING) + (NOT CURRENT_ROLE() <=> (
        SELECT ROLE_NAME FROM information_schema.APPLICABLE_ROLES WHERE IS_DEFAULT = 'YES'))
"""
_LEFT_ON_MYSQL = b"""
    SELECT (@@optimizer_trace LIKE '%enabled=on%') + (SELECT COUNT(*) FROM information_schema.OPTIMIZER_TRACE),
        CURRENT_ROLE() <> 'NONE'
"""


def holds_what_no_reset_clears(ask: Callable[[bytes], Rows | None], server_info: str, *, keeps_role: bool) -> bool:
    """Ask the server, after stored code, or text that nobody has seen, may have run.

    :param ask: asks the server; ``None``: it has not answered
    :param server_info: its version, as it told the driver
    :param keeps_role: the driver's reset leaves the session's role as it is
    :returns: ``True`` too if the server can't tell
    """
    rows = ask(_LEFT_ON_MARIADB if is_mariadb(server_info) else _LEFT_ON_MYSQL)
    if not rows:
        return True
    left, *role = map(int, rows[0])
    return left > 0 or (keeps_role and any(role))
