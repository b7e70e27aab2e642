"""``ConnectionReleaseWSGI``: wraps a WSGI application, Django's or any other that uses the ORM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django_mysqlpool.mysqlpool.scope import Scope

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ConnectionReleaseWSGI:
    """Gives the pooled connections that a request took back at the close of its iterable, or sooner.

    ``application = ConnectionReleaseWSGI(get_wsgi_application())``. An answer that is complete when the application
    returns, a list or tuple or the server's file wrapper, is passed on as it is, and the connections go back at once. From
    any other iterable they go back between its chunks, where nothing is held, and at its end or close (PEP 3333).
    """

    def __init__(self, application: Application) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        scope = Scope(lambda: f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')}")
        files = _Files(environ)
        try:
            with scope:
                answer = self.application(environ, start_response)
        except BaseException:
            scope.end()
            raise
        if isinstance(answer, (list, tuple)) or answer in files:
            scope.end()
            return answer
        return _Answer(answer, scope)


class _Files:
    """What the server's file wrapper made of files, which the server recognises and sends in its own way."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._wrapper = environ.get("wsgi.file_wrapper")
        self._made: list[object] = []
        if self._wrapper is not None and not isinstance(self._wrapper, type):
            # uWSGI's is a function; what it returns can be told only by its identity.
            environ["wsgi.file_wrapper"] = self._make

    def _make(self, *args: Any) -> Any:
        self._made.append(self._wrapper(*args))  # type: ignore[misc]
        return self._made[-1]

    def __contains__(self, answer: object) -> bool:
        if isinstance(self._wrapper, type):
            return isinstance(answer, self._wrapper)
        return any(made is answer for made in self._made)


class _Answer:
    """An iterable of chunks, made in the request's scope."""

    def __init__(self, answer: Iterable[bytes], scope: Scope) -> None:
        self._answer = answer
        self._scope = scope
        self._chunks: Iterator[bytes] | None = None
        scope.release_idle()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            with self._scope:
                if self._chunks is None:
                    self._chunks = iter(self._answer)
                return next(self._chunks)
        finally:
            self._scope.release_idle()

    def close(self) -> None:
        """The server calls it at the end of each request, also where the client has left."""
        try:
            close = getattr(self._answer, "close", None)
            if close is not None:
                with self._scope:
                    close()
        finally:
            self._scope.end()
