"""What the site tells about itself: which engine has served a page, and its pools to who watches the demo."""

from django.conf import settings


def engine(_request):
    """For the foot of each page."""
    return {"engine": settings.DATABASES["default"]["ENGINE"]}


def is_on_this_machine(request):
    """Who may see the status page without a token. For the demo only: behind a proxy everybody has its address."""
    return request.META["REMOTE_ADDR"] in {"127.0.0.1", "::1"}
