"""Facts about a pool's server."""

from __future__ import annotations

import math
from typing import Any

from django_mysqlpool.mysqlpool.functions import is_mariadb

#: The longest life of a connection, in seconds, if neither ``recycle`` nor the server says less.
LONGEST_LIFE = 30 * 60
#: The part of the server's ``wait_timeout`` after which a connection is replaced.
PART_OF_WAIT_TIMEOUT = 0.9


class ServerFacts:
    """The facts that Django reads from the server, the version for which they hold, and the life of connections.

    :param recycle: the option: seconds, -1 for no limit, or ``None`` to follow the server's ``wait_timeout``
    """

    def __init__(self, recycle: float | None) -> None:
        self._recycle = recycle
        #: Django's ``mysql_server_data``; ``None``: not read yet.
        self.data: dict[str, Any] | None = None
        self.version: str | None = None
        #: Of the last connection, as its socket tells.
        self.address: str | None = None
        #: Seconds that a connection may live, less its jitter.
        self.lifetime = self._lifetime(None)

    @property
    def is_mariadb(self) -> bool:
        return self.version is not None and is_mariadb(self.version)

    def note_server(self, version: str, address: str | None) -> dict[str, tuple[str | None, str | None]] | None:
        """A connection has been opened to a server of this version, at this address.

        :returns: the address and the version ``before`` and ``after``, if they have changed
        """
        before, after = (self.address, self.version), (address, version)
        if version != self.version:
            self.data = None
            self.lifetime = self._lifetime(None)
        self.address, self.version = after
        return None if before in {after, (None, None)} else {"before": before, "after": after}

    def note_data(self, data: dict[str, Any], wait_timeout: int | None) -> None:
        """Remember for all wrappers what one has read.

        :param wait_timeout: of a session, in seconds
        """
        self.lifetime = self._lifetime(wait_timeout)
        self.data = data

    def _lifetime(self, wait_timeout: int | None) -> float:
        if self._recycle is not None:
            return math.inf if self._recycle == -1 else self._recycle
        if wait_timeout is None:
            return LONGEST_LIFE
        return min(LONGEST_LIFE, PART_OF_WAIT_TIMEOUT * wait_timeout)
