from __future__ import annotations

from django.db import transaction
from django.urls import include, path
from rest_framework.decorators import action, api_view
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.serializers import ModelSerializer
from rest_framework.viewsets import ModelViewSet

from tests.shop.models import Account
from tests.urls import status
from tests.urls import urlpatterns as urls_of_shop


class Refused(APIException):
    status_code = 409


class AccountSerializer(ModelSerializer):
    class Meta:
        model = Account
        fields = ("id", "name", "balance")


class AccountViewSet(ModelViewSet):
    queryset = Account.objects.order_by("id")
    serializer_class = AccountSerializer

    @action(detail=True, methods=["post"])
    def spend(self, request: Request, pk: int) -> Response:
        """Write first, and refuse afterwards: the request's transaction must not be committed then."""
        account = Account.objects.select_for_update().get(pk=pk)
        account.balance -= int(request.data["amount"])
        account.save()
        if account.balance < 0:
            raise Refused
        return Response(AccountSerializer(account).data)


COMMITTED: list[str] = []


@api_view(["POST"])
def create_and_tell(request: Request) -> Response:
    """What is to happen on commit has not happened yet when the answer is made."""
    Account.objects.create(name=request.data["name"])
    transaction.on_commit(lambda: COMMITTED.append(request.data["name"]))
    if request.data.get("fail"):
        raise Refused
    return Response({"committed": list(COMMITTED)})


@api_view(["GET"])
@transaction.non_atomic_requests
def committed(request: Request) -> Response:
    return Response(list(COMMITTED))


router = DefaultRouter()
router.register("accounts", AccountViewSet)
urlpatterns = [
    path("status/", transaction.non_atomic_requests(status)),  # what it would have out itself is no leak
    *urls_of_shop,
    path("api/", include(router.urls)),
    path("create-and-tell/", create_and_tell),
    path("committed/", committed),
]
