"""The end of a response under ASGI: in the event loop if there is nothing to close, and in the request's thread else."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.signals import request_finished
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from django_mysqlpool.middleware import ConnectionReleaseASGI
from tests.hops import CountingLoop, request

pytestmark = [pytest.mark.django, pytest.mark.asgiref, pytest.mark.mode, pytest.mark.usefixtures("djangos_receivers")]

#: Threads in which something was closed.
closed_in: list[threading.Thread] = []


def note(*_: object, **__: object) -> None:
    closed_in.append(threading.current_thread())


class NotingFile(io.BytesIO):
    def close(self) -> None:
        note()
        super().close()


class NotingResponse(HttpResponse):
    def close(self) -> None:
        note()
        super().close()


class NotingCache(LocMemCache):
    def close(self, **_: Any) -> None:
        note()


def with_closer(http_request: Any) -> HttpResponse:
    response = HttpResponse()
    response._resource_closers.append(note)
    return response


def with_upload(http_request: Any) -> HttpResponse:
    upload = SimpleUploadedFile("a.txt", b"1")
    upload.close = note
    http_request._files = http_request.FILES.copy()
    http_request._files["a"] = upload
    return HttpResponse()


def with_receiver(http_request: Any) -> HttpResponse:
    request_finished.connect(note)
    return HttpResponse()


def streamed(http_request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(NotingFile(b"1"))


VIEWS = {
    "closer": with_closer,
    "upload": with_upload,
    "receiver": with_receiver,
    "stream": streamed,
    "file": lambda _: FileResponse(NotingFile(b"1")),
    "class": lambda _: NotingResponse(),
    "patched": lambda _: patched(HttpResponse()),
}


def patched(response: Any) -> Any:
    response.close = note
    return response


responses: list[HttpResponse] = []


def nothing(http_request: Any) -> HttpResponse:
    responses.append(HttpResponse())
    return responses[-1]


urlpatterns = [path("", nothing), *(path(f"{name}/", view) for name, view in VIEWS.items())]


@pytest.fixture
def hops() -> Iterator[Callable[[str], list[str]]]:
    """Asks a site; what was called in threads."""
    closed_in.clear()
    responses.clear()
    plain, noting = ({"BACKEND": f"{kind.__module__}.{kind.__qualname__}"} for kind in (LocMemCache, NotingCache))
    cache_settings = {"default": plain, "plain": plain, "noting": noting}
    with ExitStack() as stack:
        stack.enter_context(override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[], CACHES=cache_settings))
        stack.callback(request_finished.disconnect, note)
        wrapped = ConnectionReleaseASGI(get_asgi_application())
        stack.callback(wrapped.threads.close)

        def hops(path: str) -> list[str]:
            loop = CountingLoop()
            request(loop, wrapped, path)
            loop.close()
            return loop.calls

        yield hops


@pytest.mark.parametrize("cache", ["", "plain"])
def test_an_idle_response_is_closed_in_the_event_loop(hops, cache):
    assert not cache or caches[cache]
    assert hops("/") == ["nothing"]
    assert [response.closed for response in responses] == [True]


def test_beside_a_cache_that_has_something_to_close_it_is_closed_in_a_thread(hops):
    assert caches["noting"]  # in the context that the request gets
    assert hops("/") == ["nothing", "HttpResponseBase.close"]
    assert closed_in
    assert threading.main_thread() not in closed_in


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
@pytest.mark.parametrize("name", VIEWS)
def test_one_that_has_something_to_close_is_closed_in_a_thread(hops, name):
    assert hops(f"/{name}/")[-1].endswith(("close", "note"))
    assert closed_in
    assert threading.main_thread() not in closed_in
