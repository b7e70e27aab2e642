"""Tells in plain words why a connection can't be opened, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured


@dataclass(frozen=True)
class Problem:
    """Why an alias can't connect."""

    #: In plain words.
    what: str
    #: What to change.
    change: str
    #: As the driver, the server or the settings have said it.
    error: str


_LIMIT = "Raise the limit, run fewer processes, or give each a smaller pool."
_TLS = "Look at 'ssl' and 'ssl_mode' in OPTIONS, at the server's certificate and at its require_secure_transport."

# By their numbers in MySQL's and MariaDB's error references; those from 2000 on are the client library's.
_WORDS = {
    1040: ("The server has as many connections as max_connections allows.", _LIMIT),
    1044: (
        "The account has no right to use the database.",
        "Grant it: GRANT ALL ON `database`.* TO the account; or correct NAME.",
    ),
    1045: (
        "The server knows no such user, or the password is wrong, or it is not let in from this host.",
        "Correct USER and PASSWORD; compare the host in the error with that of the account in mysql.user.",
    ),
    1049: ("The server has no such database.", "Create it, or correct NAME."),
    1129: ("The server has blocked this host after many failed attempts to connect.", "Run FLUSH HOSTS on the server."),
    1130: ("The server lets nobody in from this host.", "Create an account for this host: CREATE USER 'user'@'host'."),
    1203: ("The account has as many connections as the server's max_user_connections allows.", _LIMIT),
    1226: ("The account has used up one of its limits, which the error names.", _LIMIT),
    1820: ("The account's password must be changed before it may do anything.", "Run ALTER USER with a new password."),
    1862: ("The account's password has expired.", "Run ALTER USER with a new password, or PASSWORD EXPIRE NEVER."),
    2002: (
        "Nothing answers at the server's address.",
        "Start the server, or correct HOST and PORT; HOST 'localhost' means the Unix socket, not a port.",
    ),
    2003: ("Nothing answers at the server's address.", "Start the server, or correct HOST and PORT; look for a firewall."),
    2005: ("The name of the server's host is not known.", "Correct HOST, or look at the name service."),
    2006: ("The server hung up during the handshake.", "Look into the server's log."),
    2012: ("The server hung up during the handshake.", "Look into the server's log."),
    2013: (
        "The server did not answer in time, or hung up during the handshake.",
        "Look into the server's log and at its load; check that HOST and PORT lead to a MySQL or MariaDB server.",
    ),
    2026: ("No TLS connection came about.", _TLS),
    2054: ("The client library is too old for this server.", "Install a newer client library for the driver."),
    2059: (
        "The client library lacks what the account's authentication plugin needs.",
        "Install a newer client library, or give the account a plugin that it has.",
    ),
    2061: ("The account's authentication wants a connection with TLS.", "Set 'ssl_mode' or 'ssl' in OPTIONS."),
    3118: ("The account is locked.", "Run ALTER USER ... ACCOUNT UNLOCK."),
    3159: ("The server takes connections with TLS only.", "Set 'ssl_mode' or 'ssl' in OPTIONS."),
    4151: ("The account is locked.", "Run ALTER USER ... ACCOUNT UNLOCK."),
}
_UNKNOWN = ("The connection can't be opened.", "See the error.")


def problem_of(error: Exception) -> Problem:
    """Describe an error of connecting.

    :param error: the driver's, Django's, or one of the settings
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ImproperlyConfigured):
        return Problem("The settings of the alias are wrong.", "Correct what the error names.", text)
    if isinstance(error, TypeError):
        return Problem("The driver does not know an option.", "Remove from OPTIONS what the error names.", text)
    number = error.args[0] if error.args else None
    what, change = _WORDS.get(number, _UNKNOWN) if isinstance(number, int) else _UNKNOWN
    return Problem(what, change, text)
