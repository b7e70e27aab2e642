"""Who may see the status page, and who may ask the probes.

The token's way touches neither ``request.user`` nor the session, which ask the database. A member of staff is looked up
once a minute, and only if a connection can be had for it: a signed cookie remembers the last time. So the page goes on
when the pool is exhausted, which is when it is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, router
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.crypto import constant_time_compare, salted_hmac

from django_mysqlpool.mysqlpool.backend.settings import function_at
from django_mysqlpool.mysqlpool.errors import PoolTimeout

from .readiness import why_pool_is_full

#: The fewest characters of a token.
SHORTEST_TOKEN = 16
#: Seconds after which a member of staff is looked up again, if that can be done without a wait.
CHECK_EVERY = 60
#: Seconds after which nobody is let in who can't be looked up.
TRUST_FOR = 3600
#: Seconds in which a pool that is full must have turned over, to be asked who somebody is.
TURN_WITHIN = 1.0

COOKIE = "mysqlpool_status"
_SALT = "django_mysqlpool.monitoring.access"


class Refused(Exception):
    """The request is not let in.

    :ivar status: 401: it does not say who sends it; 403: they may not; 503: that can't be looked up now
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check_settings() -> None:
    """Refuse wrong values of ``MYSQLPOOL_STATUS_TOKEN`` and ``MYSQLPOOL_STATUS_ACCESS``.

    :raises django.core.exceptions.ImproperlyConfigured: if one of them is wrong
    """
    _tokens()
    _access_function()


def _tokens() -> Sequence[str]:
    setting = getattr(settings, "MYSQLPOOL_STATUS_TOKEN", None)
    tokens = [setting] if isinstance(setting, str) else setting
    if not setting:  # as an environment variable that is not set
        return ()
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
        raise ImproperlyConfigured("MYSQLPOOL_STATUS_TOKEN must be a string, or a list of strings.")
    if any(len(token) < SHORTEST_TOKEN for token in tokens):
        raise ImproperlyConfigured(
            f"MYSQLPOOL_STATUS_TOKEN is shorter than {SHORTEST_TOKEN} characters. Make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return tokens


def _access_function() -> Callable[[HttpRequest], object] | None:
    path = getattr(settings, "MYSQLPOOL_STATUS_ACCESS", None)
    if path is None:
        return None
    if not isinstance(path, str):
        raise ImproperlyConfigured(
            f"MYSQLPOOL_STATUS_ACCESS is {path!r}, it must be the dotted path of a function (request)."
        )
    return _function_at(path)


@cache
def _function_at(path: str) -> Callable[[HttpRequest], object]:
    try:
        return function_at(path)
    except (ImportError, TypeError) as error:
        raise ImproperlyConfigured(f"MYSQLPOOL_STATUS_ACCESS is {path!r}, which fails: {error}") from error


def has_token(request: HttpRequest) -> bool:
    """True if the request brings a right token, ``Authorization: Bearer ...``.

    :raises Refused: if it brings a wrong one
    """
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    if not any(constant_time_compare(sent.strip(), token) for token in _tokens()):
        raise Refused(401, "The token is wrong.")
    return True


def is_let_in_by_site(request: HttpRequest) -> bool:
    """True if the site's own function ``MYSQLPOOL_STATUS_ACCESS`` says so."""
    function = _access_function()
    return function is not None and function(request) is True


def check_staff(request: HttpRequest) -> bool:
    """Let members of staff in.

    :returns: ``True`` if they were looked up just now, so that ``remember()`` is due
    :raises Refused: otherwise
    """
    if _is_remembered(request, CHECK_EVERY):
        return False
    if not hasattr(request, "user"):
        raise Refused(403, "Nobody can be known here: see the documentation of MYSQLPOOL_STATUS_TOKEN and _ACCESS.")
    was_known = _is_remembered(request, TRUST_FOR)
    if was_known and lookups.are_in_trouble():
        return False
    try:
        user = _look_up(request)
    except DatabaseError as error:
        if was_known:
            return False
        raise Refused(503, "The database can't be asked who you are at this moment.") from error
    if user.is_active and user.is_staff:
        return True
    raise Refused(403, "This page is for members of staff.") if user.is_authenticated else Refused(401, "Please log in.")


class _Lookups:
    """What has become of asking the database who somebody is."""

    def __init__(self) -> None:
        self.number_under_way = 0
        #: ``time.monotonic()`` of the last one that has failed.
        self.failed_at = -math.inf

    def are_in_trouble(self) -> bool:
        """True if one is under way, or has just failed: who was known waits for no second one."""
        return self.number_under_way > 0 or time.monotonic() - self.failed_at < CHECK_EVERY


lookups = _Lookups()


def _look_up(request: HttpRequest) -> Any:
    """Find the user of a request.

    :raises django.db.DatabaseError: if that can't be had
    """
    lookups.number_under_way += 1
    try:
        if settings.SESSION_COOKIE_NAME in request.COOKIES:
            _refuse_if_full()
        user: Any = request.user
        bool(user.is_active)  # it is loaded
    except DatabaseError:
        lookups.failed_at = time.monotonic()
        raise
    finally:
        lookups.number_under_way -= 1
    return user


def _refuse_if_full() -> None:
    """Take no connection from a pool that has none to spare; the checkout would wait for the pool's ``timeout``."""
    from django.contrib.auth import get_user_model

    alias = router.db_for_read(get_user_model())
    reason = why_pool_is_full(alias, TURN_WITHIN)
    if reason is not None:
        raise PoolTimeout(f"No connection for alias '{alias}': {reason}.", alias=alias)


def remember(request: HttpRequest, response: HttpResponseBase, path: str) -> None:
    """Have the browser remember that its session is that of a member of staff.

    The cookie is worth nothing without the session's, and so ends with a logout.

    :param path: where the browser sends it
    """
    session = _session_of(request)
    if session is not None:
        response.set_signed_cookie(
            COOKIE,
            session,
            salt=_SALT,
            max_age=TRUST_FOR,
            path=path,
            secure=request.is_secure(),
            httponly=True,
            samesite="Strict",
        )


def _is_remembered(request: HttpRequest, max_age: int) -> bool:
    session = _session_of(request)
    remembered = request.get_signed_cookie(COOKIE, None, salt=_SALT, max_age=max_age)
    return session is not None and remembered is not None and constant_time_compare(remembered, session)


def _session_of(request: HttpRequest) -> str | None:
    """A digest of the session's cookie; the session itself is not loaded."""
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    return salted_hmac(_SALT, cookie, algorithm="sha256").hexdigest() if cookie else None
