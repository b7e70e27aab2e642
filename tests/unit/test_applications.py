"""The wrappers refuse the other kind of application when they are made, not at the first request."""

from __future__ import annotations

import functools

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from django_mysqlpool.middleware import ConnectionReleaseASGI, ConnectionReleaseWSGI

pytestmark = pytest.mark.unit


def wsgi_function(environ, start_response): ...


async def asgi_function(scope, receive, send): ...


class WSGIObject:
    def __call__(self, environ, start_response): ...


class ASGIObject:
    async def __call__(self, scope, receive, send): ...


class ReturningASGI:
    """Not a coroutine function, and awaitable all the same."""

    def __call__(self, scope, receive, send):
        return asgi_function(scope, receive, send)


class ASGI2:
    def __init__(self, scope): ...

    async def __call__(self, receive, send): ...


def with_options(application, prefix=""):
    @functools.wraps(application)
    def called(*args, **kwargs):
        return application(*args, **kwargs)

    return called


WSGI = [wsgi_function, WSGIObject(), functools.partial(lambda prefix, *args: None, "/"), lambda *args: None]
WSGI += [with_options(wsgi_function), ConnectionReleaseWSGI(wsgi_function)]
ASGI = [asgi_function, ASGIObject(), ReturningASGI(), ConnectionReleaseASGI(asgi_function), lambda *args: None]


def name_of(value) -> str:
    return getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize("application", WSGI, ids=name_of)
def test_wsgi_applications(application):
    assert ConnectionReleaseWSGI(application).application is application


@pytest.mark.parametrize("application", ASGI, ids=name_of)
def test_asgi_applications(application):
    assert ConnectionReleaseASGI(application).application is application


@pytest.mark.parametrize("application", ASGI[:-1], ids=name_of)
def test_an_asgi_application_in_the_wrapper_for_wsgi(application):
    with pytest.raises(TypeError, match="^ConnectionReleaseWSGI got an ASGI application, .* use ConnectionReleaseASGI.$"):
        ConnectionReleaseWSGI(application)


@pytest.mark.parametrize("application", [wsgi_function, WSGIObject(), ConnectionReleaseWSGI(wsgi_function)], ids=name_of)
def test_a_wsgi_application_in_the_wrapper_for_asgi(application):
    with pytest.raises(TypeError, match="^ConnectionReleaseASGI got a WSGI application, .* use ConnectionReleaseWSGI.$"):
        ConnectionReleaseASGI(application)


def test_djangos_own_handlers():
    wsgi, asgi = WSGIHandler.__new__(WSGIHandler), ASGIHandler.__new__(ASGIHandler)
    ConnectionReleaseWSGI(wsgi)
    ConnectionReleaseASGI(asgi)
    with pytest.raises(TypeError, match="got a WSGI application"):
        ConnectionReleaseASGI(wsgi)
    with pytest.raises(TypeError, match="got an ASGI application"):
        ConnectionReleaseWSGI(asgi)


@pytest.mark.parametrize("wrapper", [ConnectionReleaseWSGI, ConnectionReleaseASGI])
@pytest.mark.parametrize("value", ["shop.wsgi.application", None])
def test_what_is_no_application(wrapper, value):
    with pytest.raises(TypeError, match=f"^{wrapper.__name__} got {value!r}, which can't be called."):
        wrapper(value)


@pytest.mark.parametrize(("wrapper", "value"), [(ConnectionReleaseASGI, ASGI2), (ConnectionReleaseWSGI, lambda: None)])
def test_what_takes_other_arguments(wrapper, value):
    with pytest.raises(TypeError, match="which does not accept"):
        wrapper(value)
