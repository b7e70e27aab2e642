"""The views of the tests' site; what they do to connections is what requests do to them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from django_mysqlpool import PooledThreadPoolExecutor, auto_close_db, pool_status
from tests import OUTLIVES
from tests.shop.models import Account


def status(request: HttpRequest) -> JsonResponse:
    """How the process is, without the database; asgiref's executors, and so their threads, end as garbage."""
    gc.collect()
    return JsonResponse({"pools": pool_status(), "threads": [thread.name for thread in threading.enumerate()]})


def nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse("nothing")


def query() -> int:
    return Account.objects.count()


def sleep_on_server(seconds: float = 0.05) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])


def count(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(query()))


async def count_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Account.objects.acount()))


def write(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        account = Account.objects.create(name="written")
        account.delete()
    return HttpResponse("written")


def fail(request: HttpRequest) -> HttpResponse:
    query()
    raise RuntimeError("the view fails")


async def fail_async(request: HttpRequest) -> HttpResponse:
    await Account.objects.acount()
    raise RuntimeError("the view fails")


def missing(request: HttpRequest) -> HttpResponse:
    query()
    raise Http404


def leave_open(request: HttpRequest) -> HttpResponse:
    connection.set_autocommit(False)
    Account.objects.create(name="never committed")
    return HttpResponse("left open")


def leave_atomic(request: HttpRequest) -> HttpResponse:
    transaction.atomic().__enter__()
    Account.objects.create(name="never committed")
    return HttpResponse("left open")


def leave_dirty(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SET @left_behind = 1")
    return HttpResponse("dirty")


def slow(request: HttpRequest) -> HttpResponse:
    sleep_on_server()
    return HttpResponse("slow")


async def slow_async(request: HttpRequest) -> HttpResponse:
    await sync_to_async(sleep_on_server)()
    await asyncio.sleep(0.02)
    return HttpResponse("slow")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[str]:
        for _ in range(5):
            yield f"{query()}\n"
            yield "x" * 100_000

    return StreamingHttpResponse(chunks())


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(5):
            yield f"{await Account.objects.acount()}\n"
            yield "x" * 100_000

    return StreamingHttpResponse(chunks())


def stream_fails(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[str]:
        yield f"{query()}\n"
        raise RuntimeError("the stream fails")

    return StreamingHttpResponse(chunks())


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """Server-sent events: one, and then nothing for as long as the client stays."""

    async def chunks() -> AsyncIterator[str]:
        yield f"data: {await Account.objects.acount()}\n\n"
        await asyncio.Event().wait()

    return StreamingHttpResponse(chunks(), content_type="text/event-stream")


async def events_alone(request: HttpRequest) -> StreamingHttpResponse:
    """The same of a stream that asks nothing of the database."""

    async def chunks() -> AsyncIterator[str]:
        yield "data: none\n\n"
        await asyncio.Event().wait()

    return StreamingHttpResponse(chunks(), content_type="text/event-stream")


def file(request: HttpRequest) -> FileResponse:
    query()
    content = tempfile.TemporaryFile()  # noqa: SIM115 (the response closes it)
    content.write(b"x" * 300_000)
    content.seek(0)
    return FileResponse(content)


def threads(request: HttpRequest) -> HttpResponse:
    """Plain threads that take the context along, and outlive the request or not."""
    for action in (query, sleep_on_server):
        threading.Thread(target=contextvars.copy_context().run, args=(action,), name=OUTLIVES).start()
    joined = threading.Thread(target=contextvars.copy_context().run, args=(query,))
    joined.start()
    joined.join()
    return HttpResponse("threads")


async def threads_async(request: HttpRequest) -> HttpResponse:
    """What is said to leak: thread-insensitive calls, and asyncio.to_thread."""
    await asyncio.gather(
        sync_to_async(query, thread_sensitive=False)(),
        asyncio.to_thread(query),
        asyncio.to_thread(query),
    )
    return HttpResponse("threads")


#: Requests that need three connections each, and hold those that they have, never wait for each other if two of them are
#: at work and the cap is five, as a storm's is: "The size of the pool" in docs/middleware.md. (It is none of
#: asyncio's semaphores, because under WSGI each request has an event loop of its own.)
_two_at_a_time = threading.BoundedSemaphore(2)


async def threads_async_in_turn(request: HttpRequest) -> HttpResponse:
    while not _two_at_a_time.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        return await threads_async(request)
    finally:
        _two_at_a_time.release()


def executor(request: HttpRequest) -> HttpResponse:
    with PooledThreadPoolExecutor(max_workers=2) as workers:
        counts = list(workers.map(lambda _: query(), range(4)))
    return HttpResponse(str([*counts, auto_close_db(query)()]))


# Under gevent only: greenlets are interrupted and killed wherever they wait, as no thread can be.


def interrupted(request: HttpRequest) -> HttpResponse:
    """A time limit ends a statement in the middle; the request goes on."""
    import gevent

    with gevent.Timeout(0.02, False):
        sleep_on_server(5)
    return HttpResponse(str(query()))


def interrupted_block(request: HttpRequest) -> HttpResponse:
    import gevent

    with gevent.Timeout(0.02, False), transaction.atomic():
        Account.objects.create(name="never committed")
        sleep_on_server(5)
    return HttpResponse(str(query()))


def killed(request: HttpRequest) -> HttpResponse:
    """A greenlet of the request's is killed in the middle of a statement, or while it waits for a connection."""
    import gevent

    greenlets = [gevent.spawn(sleep_on_server, 5) for _ in range(2)]
    gevent.sleep(0.02)
    gevent.killall(greenlets)
    return HttpResponse("killed")


def forgetful(request: HttpRequest) -> HttpResponse:
    """A greenlet in no request's scope ends with a transaction open."""
    import gevent

    gevent.Greenlet(contextvars.Context().run, leave_open, request).start()
    return HttpResponse("forgotten")


def block(request: HttpRequest) -> HttpResponse:
    sleep_on_server(float(request.GET["seconds"]))
    return HttpResponse("slept")


urlpatterns = [
    path("status/", status),
    path("nothing/", nothing),
    path("count/", count),
    path("count-async/", count_async),
    path("write/", write),
    path("fail/", fail),
    path("fail-async/", fail_async),
    path("missing/", missing),
    path("leave-open/", leave_open),
    path("leave-atomic/", leave_atomic),
    path("leave-dirty/", leave_dirty),
    path("slow/", slow),
    path("slow-async/", slow_async),
    path("stream/", stream),
    path("stream-async/", stream_async),
    path("stream-fails/", stream_fails),
    path("events/", events),
    path("events-alone/", events_alone),
    path("file/", file),
    path("threads/", threads),
    path("executor/", executor),
    path("threads-async/", threads_async),
    path("threads-async-in-turn/", threads_async_in_turn),
    path("interrupted/", interrupted),
    path("interrupted-block/", interrupted_block),
    path("killed/", killed),
    path("forgetful/", forgetful),
    path("block/", block),
]
