"""Classifies errors of the driver: connection lost, server full, or server read-only."""

from __future__ import annotations

from enum import Enum

# By their numbers in MySQL's and MariaDB's error references; those from 2000 and from 5000 on are the client library's.
_LOST = {
    1053,  # ER_SERVER_SHUTDOWN
    1077,  # ER_NORMAL_SHUTDOWN
    1078,  # ER_GOT_SIGNAL
    1079,  # ER_SHUTDOWN_COMPLETE
    1080,  # ER_FORCING_CLOSE
    1152,  # ER_ABORTING_CONNECTION
    1153,  # ER_NET_PACKET_TOO_LARGE: the server does not read the rest, and hangs up
    1154,  # ER_NET_READ_ERROR_FROM_PIPE
    1155,  # ER_NET_FCNTL_ERROR
    1156,  # ER_NET_PACKETS_OUT_OF_ORDER
    1157,  # ER_NET_UNCOMPRESS_ERROR
    1158,  # ER_NET_READ_ERROR
    1159,  # ER_NET_READ_INTERRUPTED
    1160,  # ER_NET_ERROR_ON_WRITE
    1161,  # ER_NET_WRITE_INTERRUPTED
    1184,  # ER_NEW_ABORTING_CONNECTION
    1873,  # ER_ACCESS_DENIED_CHANGE_USER_ERROR
    1927,  # ER_CONNECTION_KILLED, MariaDB's
    2006,  # CR_SERVER_GONE_ERROR
    2008,  # CR_OUT_OF_MEMORY: for an answer, whose rest is unread
    2013,  # CR_SERVER_LOST
    2020,  # CR_NET_PACKET_TOO_LARGE: an answer that the client does not read
    2026,  # CR_SSL_CONNECTION_ERROR, of a connection that was open: its server has gone
    2027,  # CR_MALFORMED_PACKET
    2055,  # CR_SERVER_LOST_EXTENDED
    3032,  # ER_SERVER_OFFLINE_MODE
    3168,  # ER_SERVER_ISNT_AVAILABLE
    3169,  # ER_SESSION_WAS_KILLED
    5013,  # CR_ERR_NET_READ, MariaDB's client library's, as are the next two
    5014,  # CR_ERR_NET_WRITE
    5015,  # CR_ERR_NET_UNCOMPRESS
}
# MySQL's; MariaDB has other errors of these numbers.
_LOST_BY_MYSQL = {
    4031,  # ER_CLIENT_INTERACTION_TIMEOUT
    4081,  # ER_GLOBAL_CONN_LIMIT: "Connection closed. Global connection memory limit ... exceeded"
    4082,  # ER_CONN_LIMIT
    4312,  # the server is in offline mode since ..., with a reason
    4313,  # the same, with who did it
}
_FULL = {
    1040,  # ER_CON_COUNT_ERROR: the server's max_connections
    1203,  # ER_TOO_MANY_USER_CONNECTIONS: the server's max_user_connections
}
# ER_USER_LIMIT_REACHED: an account's own limit, of connections at once or of something in an hour. The message is in the
# language of lc_messages; the resource's name in it is not.
_USER_LIMIT_REACHED = 1226
_CONNECTIONS_AT_ONCE = "max_user_connections"
_READ_ONLY_TRANSACTION = 1792  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
_OPTION_PREVENTS_STATEMENT = 1290
_READ_ONLY_MODES = {
    1836,  # ER_READ_ONLY_MODE
    1874,  # ER_INNODB_READ_ONLY
}
# Of a Galera node that has lost its cluster, and answers to nothing.
_UNKNOWN_COMMAND = 1047
_ERROR_DURING_COMMIT = 1180
# Methods of both drivers.
_WRITERS_OF_ARGUMENTS = {"_mogrify", "mogrify", "literal", "escape"}


class Fault(Enum):
    """The kinds of errors about which a pool can do something."""

    #: Nothing that concerns the connection: a statement was wrong, a row was locked.
    NONE = "none"
    #: The connection is dead.
    LOST = "lost"
    #: The server, or the account, has as many connections as it may have.
    FULL = "full"
    #: The server takes no writes any more, as after a failover, or nothing at all, as a Galera node without a quorum.
    READ_ONLY = "read-only"


def fault_of(error: BaseException, *, asked_for_read_only: bool = False, is_mariadb: bool = False) -> Fault:
    """Classify an error of the driver.

    With ``asked_for_read_only`` the session has, or may have, asked for read-only transactions itself, and to be refused
    a write in one tells nothing about the server. Some numbers mean another thing if the server ``is_mariadb``.
    """
    number = _number_of(error)
    if number in _LOST or (number in _LOST_BY_MYSQL and not is_mariadb):
        return Fault.LOST
    if number in _FULL or (number == _USER_LIMIT_REACHED and _CONNECTIONS_AT_ONCE in _text_of(error)):
        return Fault.FULL
    if number in _READ_ONLY_MODES or (
        number == _OPTION_PREVENTS_STATEMENT and "read-only" in _text_of(error).replace("_", "-")
    ):
        return Fault.READ_ONLY
    if is_unready(error) or (number == _READ_ONLY_TRANSACTION and not asked_for_read_only):
        return Fault.READ_ONLY
    return Fault.NONE


def is_unready(error: BaseException) -> bool:
    """True if the server takes neither writes nor reads."""
    number = _number_of(error)
    return (number == _UNKNOWN_COMMAND and "WSREP" in _text_of(error)) or (
        number == _ERROR_DURING_COMMIT and "Primary Component" in _text_of(error)
    )


def is_about_transaction(error: BaseException) -> bool:
    """True if it is the transaction that takes no writes: the session may have it so, or the server for all of them."""
    return _number_of(error) == _READ_ONLY_TRANSACTION


def is_of_server(error: BaseException) -> bool:
    """True if the server has said so, and not the driver or its client library."""
    number = _number_of(error) or 0
    return 1000 <= number < 2000 or 3000 <= number < 5000


def is_before_sending(error: BaseException) -> bool:
    """True if an error was raised while the driver wrote arguments into the statement: nothing had been sent."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name in _WRITERS_OF_ARGUMENTS:
            return True
        traceback = traceback.tb_next
    return False


# An exception may have anything among its arguments, however that compares itself.


def _number_of(error: BaseException) -> int | None:
    return error.args[0] if error.args and type(error.args[0]) is int else None


def _text_of(error: BaseException) -> str:
    return " ".join(arg for arg in error.args if isinstance(arg, str))
