"""``ConnectionReleaseWSGI``, a wrapper for a WSGI application, Django's or any other that uses the ORM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import ref

from django_mysqlpool.mysqlpool.backend.aliases import import_pool, refuse_wrong_options
from django_mysqlpool.mysqlpool.backend.scope import Scope

from .applications import require_wsgi

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ConnectionReleaseWSGI:
    """Returns a request's pooled connections when the server closes the response's iterable, or sooner.

    ``application = ConnectionReleaseWSGI(get_wsgi_application())``. A list, a tuple or the result of the server's file
    wrapper is complete when the application returns: it is passed on unchanged, and the connections return at once. With
    any other iterable, idle connections return between its chunks, and all return at ``close()``, which
    `PEP 3333 <https://peps.python.org/pep-3333/#specification-details>`_ makes the server call after each request.

    :param application: the WSGI application to wrap
    :raises TypeError: if that is no WSGI application, but an ASGI application for instance
    :raises django.core.exceptions.ImproperlyConfigured: if the pool options of an alias are wrong
    """

    def __init__(self, application: Application) -> None:
        require_wsgi(application)
        refuse_wrong_options()
        import_pool()
        self.application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        scope = Scope(lambda: f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')}")
        files = _Files(environ)
        try:
            with scope:
                answer = self.application(environ, start_response)
            if not (isinstance(answer, (list, tuple)) or answer in files):
                return _Answer(answer, scope)
            scope.end()
        except BaseException:  # raised by the application, or by an interrupt of end()
            scope.end()
            raise
        return answer


class _Files:
    """The results of the server's file wrapper for one request, which the server recognises and sends in its own way."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._wrapper = environ.get("wsgi.file_wrapper")
        self._made: list[object] = []
        if self._wrapper is not None and not isinstance(self._wrapper, type):
            # uWSGI's file wrapper is a function, so its results can only be recognised by identity.
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
        scope.owner = ref(self)
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
        """Close the iterable and end the scope. The server calls it after each request, also if the client has left."""
        try:
            close = getattr(self._answer, "close", None)
            if close is not None:
                with self._scope:
                    close()
        finally:
            self._scope.end()
