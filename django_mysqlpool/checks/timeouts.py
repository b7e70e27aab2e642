"""The check of the driver's timeouts, for production."""

from __future__ import annotations

from collections.abc import Mapping

from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import connections

from .common import DOCS, pooled_aliases


# With --deploy only: networks that lose packets are found in production, not on a developer's machine.
@register(Tags.compatibility, deploy=True)
def check_timeouts(**kwargs: object) -> list[CheckMessage]:
    """Report pooled aliases without ``read_timeout`` or ``write_timeout``, whose statements may wait for ever (W004).

    :param kwargs: not used
    :returns: one warning for each such alias
    """
    return [
        Warning(
            f"The OPTIONS of the database alias '{alias}' have no {' and no '.join(missing)}.",
            hint=(
                "Where the network swallows packets, or the server's machine is gone, a statement waits for ever without, "
                "and its connection counts for the pool's cap all that time. Set read_timeout to the longest query's time "
                f"and 30 to 60 seconds more, and write_timeout to 30. See {DOCS}#w004"
            ),
            id="django_mysqlpool.W004",
        )
        for alias, _ in pooled_aliases()
        if (missing := _missing_timeouts(connections[alias].settings_dict["OPTIONS"]))
    ]


def _missing_timeouts(options: Mapping[str, object]) -> list[str]:
    return [name for name in ("read_timeout", "write_timeout") if not options.get(name)]
