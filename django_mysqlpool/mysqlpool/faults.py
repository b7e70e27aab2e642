"""What an error of the driver's tells about the connection it came from, and about the server behind it."""

from __future__ import annotations

from enum import Enum

# By their numbers in MySQL's and MariaDB's error references; those from 2000 on are the client library's.
_LOST = {
    1053,  # ER_SERVER_SHUTDOWN
    1077,  # ER_NORMAL_SHUTDOWN
    1078,  # ER_GOT_SIGNAL
    1079,  # ER_SHUTDOWN_COMPLETE
    1152,  # ER_ABORTING_CONNECTION
    1158,  # ER_NET_READ_ERROR
    1159,  # ER_NET_READ_INTERRUPTED
    1160,  # ER_NET_ERROR_ON_WRITE
    1161,  # ER_NET_WRITE_INTERRUPTED
    1184,  # ER_NEW_ABORTING_CONNECTION
    1927,  # ER_CONNECTION_KILLED, MariaDB's
    2006,  # CR_SERVER_GONE_ERROR
    2013,  # CR_SERVER_LOST
    2026,  # CR_SSL_CONNECTION_ERROR, of a connection that was open: its server has gone
    2027,  # CR_MALFORMED_PACKET
    2055,  # CR_SERVER_LOST_EXTENDED
    3169,  # ER_SESSION_WAS_KILLED
    4031,  # ER_CLIENT_INTERACTION_TIMEOUT
}
_FULL = {
    1040,  # ER_CON_COUNT_ERROR: the server's max_connections
    1203,  # ER_TOO_MANY_USER_CONNECTIONS: the server's max_user_connections
    1226,  # ER_USER_LIMIT_REACHED: the account's own limit
}
_READ_ONLY_TRANSACTION = 1792  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
_OPTION_PREVENTS_STATEMENT = 1290
_READ_ONLY_MODE = 1836
_UNKNOWN_COMMAND = 1047


class Fault(Enum):
    """What is wrong, as far as a pool can do something about it."""

    #: Nothing that concerns the connection: a statement was wrong, a row was locked.
    NONE = "none"
    #: The connection is dead.
    LOST = "lost"
    #: The server, or the account, has as many connections as it may have.
    FULL = "full"
    #: The server takes no writes any more, as after a failover, or nothing at all, as a Galera node without a quorum.
    READ_ONLY = "read-only"


def fault_of(error: BaseException, *, asked_for_read_only: bool = False) -> Fault:
    """What an error of the driver's tells.

    With ``asked_for_read_only`` the session has, or may have, asked for read-only transactions itself, and to be refused
    a write in one tells nothing about the server.
    """
    number = error.args[0] if error.args else None
    if number in _LOST:
        return Fault.LOST
    if number in _FULL:
        return Fault.FULL
    if number == _UNKNOWN_COMMAND and "WSREP" in str(error):
        return Fault.READ_ONLY
    if number == _READ_ONLY_MODE or (number == _OPTION_PREVENTS_STATEMENT and "read-only" in str(error).replace("_", "-")):
        return Fault.READ_ONLY
    if number == _READ_ONLY_TRANSACTION and not asked_for_read_only:
        return Fault.READ_ONLY
    return Fault.NONE
