"""Sites that a module's tests share: to start one takes longer than to test it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devtools.server import Server
from tests.conftest import Observer, Site, serving

#: The most connections that a site's worker may have; the server refuses it a further one.
CAP = 2


@pytest.fixture(scope="module")
def serve_companion(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Serves a site, with one of the settings in ``sites``, in one process: ``serve_companion("gunicorn", "toolbar")``."""
    observer = Observer(server)
    with serving(server, observer, tmp_path_factory.mktemp("companion")) as serve:

        def start(kind: str, settings: str = "", **environment: str) -> Site:
            if settings:
                environment["DJANGO_SETTINGS_MODULE"] = f"{__package__}.sites.{settings}"
            return serve(kind, pool={"pool_size": CAP, "max_overflow": 0}, at_most=CAP, **environment)

        yield start
    observer.close()


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn wrapped"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of web server."""
    return request.param
