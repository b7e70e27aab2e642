"""The status page, for people and as JSON, and the probes for load balancers and orchestrators."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template import Context, Engine
from django.urls import NoReverseMatch, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

import django_mysqlpool
from django_mysqlpool import pool_statistics, pool_status
from django_mysqlpool.mysqlpool.backend.pools import pool_holders

from . import access
from .history import history
from .readiness import pooled_aliases, probes

View = Callable[..., HttpResponse]

PAGE = Path(__file__).with_name("page")
ASSETS = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}
#: Nothing is loaded from elsewhere, and nothing stands in the page itself that would need a nonce.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Seconds between two refreshes of the page, and after which a client is told to try again.
REFRESH = 2
RETRY_AFTER = 5

_engine = Engine(dirs=[str(PAGE)], autoescape=True)


def _without_database(view: View) -> View:
    """Keep Django from asking the database on its way to a view."""
    for alias in connections:  # under ATOMIC_REQUESTS a view begins with a connection of each alias
        transaction.non_atomic_requests(using=alias)(view)
    return login_not_required(require_safe(view))


# For people


@_without_database
@never_cache
def status(request: HttpRequest) -> HttpResponse:
    """The page, or with ``?format=json`` its figures."""
    wants_json = request.GET.get("format") == "json"
    try:
        was_looked_up = not (access.has_token(request) or access.is_let_in_by_site(request)) and access.check_staff(request)
    except access.Refused as refusal:
        return _refuse(request, refusal, wants_json=wants_json)
    response = JsonResponse(figures(), json_dumps_params={"indent": 1}) if wants_json else _page()
    if was_looked_up:
        access.remember(request, response, request.path)
    return response


def _page() -> HttpResponse:
    return _html("status.html", {"process": _process(), "refresh": REFRESH})


def _html(template: str, context: dict[str, Any], status_code: int = 200) -> HttpResponse:
    # (Relative addresses, whatever namespace these URLs are in.)
    urls = {name.partition(".")[2]: f"{name}?v={_digest(name)}" for name in ASSETS}
    content = _engine.get_template(template).render(Context({**context, "urls": urls}))
    return HttpResponse(content, status=status_code, headers={"Content-Security-Policy": POLICY})


def _refuse(request: HttpRequest, refusal: access.Refused, *, wants_json: bool) -> HttpResponse:
    response: HttpResponse
    if wants_json or "Authorization" in request.headers:
        response = JsonResponse({"error": str(refusal)}, status=refusal.status)
    elif refusal.status == 401:
        from django.contrib.auth.views import redirect_to_login  # needs its models

        response = redirect_to_login(request.get_full_path(), _login_url())
    else:
        response = _html("refused.html", {"reason": str(refusal), "status": refusal.status}, refusal.status)
    return _with_headers(response)


def _with_headers(response: HttpResponse) -> HttpResponse:
    if response.status_code == 401:
        response["WWW-Authenticate"] = 'Bearer realm="mysqlpool"'
    elif response.status_code == 503:
        response["Retry-After"] = str(RETRY_AFTER)
    return response


def _login_url() -> str:
    try:
        return reverse("admin:login")
    except NoReverseMatch:
        return str(settings.LOGIN_URL)


def figures() -> dict[str, Any]:
    """All that the page shows, as JSON has it."""
    statistics, holders = pool_statistics(), pool_holders()
    return {
        "process": _process(),
        "pools": {
            name: {
                **numbers,
                **statistics.get(name, {}),
                "holders": holders.get(name, []),
                "per_second": history.rates_of(name),
                "history": history.of_pool(name),
            }
            for name, numbers in pool_status().items()
        },
        "events": history.events(),
    }


def _process() -> dict[str, Any]:
    """Which of the site's processes this is."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "version": django_mysqlpool.__version__}


@_without_database
def asset(_: HttpRequest, name: str) -> HttpResponse:
    """The page's script or style, which tell nothing to a stranger."""
    if name not in ASSETS:
        raise Http404
    response = HttpResponse(_content(name), content_type=ASSETS[name])
    response["Cache-Control"] = "public, max-age=31536000, immutable"
    response["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def _content(name: str) -> bytes:
    return (PAGE / name).read_bytes()


@cache
def _digest(name: str) -> str:
    return hashlib.sha256(_content(name)).hexdigest()[:12]


# For machines


@_without_database
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """Answer that this process serves. No connection is taken for it."""
    return _probe(request, list)


@_without_database
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer if the pools of this process can serve; 503: one can't. ``?using=alias`` asks about some of them."""
    return _probe(request, lambda: _why_not_ready(request.GET.getlist("using")))


def _why_not_ready(asked: list[str]) -> list[str]:
    aliases = pooled_aliases()
    if not set(asked) <= set(aliases):
        raise Http404
    return [f"{alias}: {reason}" for alias, reason in probes.ask(asked or aliases).items() if reason is not None]


def _probe(request: HttpRequest, look: Callable[[], list[str]]) -> HttpResponse:
    """Answer a probe by its status, and in words; the reasons are for who has the token."""
    try:
        has_token = access.has_token(request)
        if not (has_token or access.is_let_in_by_site(request)):
            raise access.Refused(401, "A probe needs the token: Authorization: Bearer ...")
    except access.Refused as refusal:
        return _with_headers(_text(str(refusal), refusal.status))
    reasons = look()
    if not reasons:
        return _text("ok")
    return _with_headers(_text("\n".join(["not ready", *(reasons if has_token else [])]), 503))


def _text(text: str, status_code: int = 200) -> HttpResponse:
    return HttpResponse(f"{text}\n", content_type="text/plain; charset=utf-8", status=status_code)
