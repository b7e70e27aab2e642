"""A site with Channels: websockets whose consumers ask the database, beside Django's own requests."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from channels.db import aclose_old_connections, database_sync_to_async  # noqa: E402
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.urls import path  # noqa: E402

from django_mysqlpool.middleware import ConnectionReleaseASGI  # noqa: E402
from tests.shop.models import Account  # noqa: E402


@database_sync_to_async
def do(what: str) -> object:
    """What a message asks for."""
    if what == "fail":
        with transaction.atomic():
            Account.objects.create(name="never committed")
            raise RuntimeError("the message fails")
    if what == "leave open":
        connection.set_autocommit(False)
        Account.objects.create(name="never committed")
    if what == "sleep":
        with connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(0.02)")
    return [Account.objects.filter(name="never committed").count(), connection.get_autocommit()]


class Asynchronous(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: str, **_: object) -> None:
        try:
            await self.send_json(await do(content))
        except RuntimeError as error:
            await self.send_json(str(error))


class OrmItself(AsyncJsonWebsocketConsumer):
    """The ORM's own asynchronous methods; a consumer that uses them closes old connections itself, says Channels."""

    async def receive_json(self, content: str, **_: object) -> None:
        await self.send_json(await Account.objects.filter(name=content).acount())
        await aclose_old_connections()


class Synchronous(JsonWebsocketConsumer):
    """Channels runs it by ``database_sync_to_async`` itself."""

    def receive_json(self, content: str, **_: object) -> None:
        self.send_json(Account.objects.filter(name=content).count())


application = ConnectionReleaseASGI(
    ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": URLRouter(
                [
                    path("asynchronous/", Asynchronous.as_asgi()),
                    path("orm-itself/", OrmItself.as_asgi()),
                    path("synchronous/", Synchronous.as_asgi()),
                ]
            ),
        }
    ),
    threads=8,
)
