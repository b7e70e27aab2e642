"""``auto_close_db``, which returns the connections of a call or a block when it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from functools import partial, wraps
from inspect import isasyncgenfunction, isgeneratorfunction
from typing import Any, TypeVar, overload
from weakref import ref

from asgiref.sync import iscoroutinefunction

from django_mysqlpool.mysqlpool.backend.threads import in_atomic_block

from .work import Work, current_runner, name_of, run_as_work

F = TypeVar("F", bound=Callable[..., Any])
Using = str | Iterable[str] | None


@overload
def auto_close_db(function: F, /) -> F: ...
@overload
def auto_close_db(*, using: Using = None) -> AutoCloseDb: ...
def auto_close_db(function: Any = None, /, *, using: Using = None) -> Any:
    """Return the pooled connections of a call or a block to their pools when it ends.

    As a decorator, ``@auto_close_db``, ``@auto_close_db()`` or ``@auto_close_db(using="alias")``, it accepts everything
    that can be called: functions and methods, static and class methods, callable objects, partials, coroutine functions,
    generators and asynchronous generators. ``with auto_close_db():`` and ``async with auto_close_db():`` do the same for
    a block.

    Connections return however the call ends, and a transaction that it left open is rolled back. If the caller is inside
    an ``atomic()`` block, that block's connection stays out. Nested in another ``auto_close_db``, connections return at
    the end of the outer one.

    :param function: what to decorate; ``None`` (default) in the forms with parentheses
    :param using: the database aliases whose connections return, one or a list; default ``None``: all
    :returns: the decorated function, with its name, docstring and signature; without ``function`` an object that is both a
        decorator and a context manager, for any number of uses in any thread
    :raises TypeError: at once, if ``using`` is neither an alias nor a list of aliases
    :raises django.db.utils.ConnectionDoesNotExist: when the call or block begins, if ``DATABASES`` does not have an alias
    """
    release = AutoCloseDb(using)
    return release if function is None else release(function)


class AutoCloseDb:
    """The result of ``auto_close_db()``: a decorator and a context manager, for any number of uses in any thread."""

    def __init__(self, using: Using = None) -> None:
        self.using = aliases(using)
        #: The open blocks of each task or thread.
        self._blocks: dict[object, list[_Block]] = {}

    def __call__(self, function: F, /) -> F:
        """Decorate ``function``."""
        return _decorated(function, self.using)  # type: ignore[no-any-return]

    def __enter__(self) -> None:
        block = _Block(Work(self.using), in_atomic_block())
        self._blocks.setdefault(block.work.runner, []).append(block)
        block.work.__enter__()

    def __exit__(self, *exception: object) -> None:
        block = self._leave()
        try:
            block.work.finish(keep=block.of_the_caller)
        except BaseException:
            if not block.work.has_ended:
                block.work.finish(keep=block.of_the_caller)
            raise

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exception: object) -> None:
        await self._leave().work.finish_async()

    def _leave(self) -> _Block:
        runner = current_runner()
        blocks = self._blocks[runner]
        block = blocks.pop()
        if not blocks:
            del self._blocks[runner]
        block.work.__exit__()
        return block


class _Block:
    """An open ``with auto_close_db()``: its unit of work, and the aliases that were inside ``atomic()`` before it.

    If this object is collected and its work has not ended, an interrupt has kept ``__exit__()`` from ending it.
    """

    __slots__ = ("__weakref__", "of_the_caller", "work")

    def __init__(self, work: Work, of_the_caller: frozenset[str]) -> None:
        self.work = work
        self.of_the_caller = of_the_caller
        work.owner = ref(self)


def aliases(using: Using) -> frozenset[str] | None:
    """Return the aliases that ``using`` names; ``None`` means all."""
    if using is None:
        return None
    if isinstance(using, str):
        return frozenset([using])
    names = tuple(using) if isinstance(using, Iterable) and not isinstance(using, (bytes, bytearray)) else (using,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"using is {using!r}; it must be an alias of DATABASES, or a list of them")
    return frozenset(names)


def called_by(function: Any) -> Any:
    """Return the function inside partials, or the ``__call__`` of an object, which ``inspect`` can ask for its kind."""
    while isinstance(function, partial):
        function = function.func
    method = getattr(type(function), "__call__", None)  # noqa: B004 (it must be one that is written in Python)
    return method if hasattr(method, "__code__") else function


def is_coroutine_function(function: Any) -> bool:
    """Return ``True`` if a call returns a coroutine, because of ``async def`` or because it is marked as such."""
    return iscoroutinefunction(function) or iscoroutinefunction(called_by(function))


def _decorated(function: Any, using: frozenset[str] | None) -> Any:
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_decorated(function.__func__, using))
    if not callable(function):
        raise TypeError(f"auto_close_db decorates what can be called, not {function!r}; aliases are named by using=")
    if is_coroutine_function(function):
        wrapper = _coroutine(function, using)
    elif isasyncgenfunction(called_by(function)):
        wrapper = _async_generator(function, using)
    elif isgeneratorfunction(called_by(function)):
        wrapper = _generator(function, using)
    else:
        wrapper = _function(function, using)
    if not hasattr(function, "__name__"):
        wrapper.__name__ = wrapper.__qualname__ = type(function).__name__
    return wrapper


def _function(function: Callable[..., Any], using: frozenset[str] | None) -> Callable[..., Any]:
    name = partial(name_of, function)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return run_as_work(name, using, function, *args, **kwargs)

    return wrapper


def _coroutine(function: Callable[..., Any], using: frozenset[str] | None) -> Callable[..., Any]:
    name = partial(name_of, function)

    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        work = Work(using, name)
        try:
            with work:
                return await function(*args, **kwargs)
        finally:
            await work.finish_async()

    return wrapper


# A generator has the context variables of the code that takes its next step. So its unit of work is the current one only
# during a step. Between two steps the generator keeps its connections, and with them its transaction.


def _generator(function: Callable[..., Any], using: frozenset[str] | None) -> Callable[..., Any]:
    name = partial(name_of, function)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        work = Work(using, name)
        generator = function(*args, **kwargs)
        resume = partial(generator.send, None)
        left_open: frozenset[str] = frozenset()
        of_the_caller: frozenset[str] = frozenset()
        # A dropped generator ends in the thread of the garbage collector, whose own work it must not end.
        is_closed = False
        try:
            while True:
                of_the_caller = in_atomic_block() - left_open
                try:
                    with work:
                        value = resume()
                except StopIteration as end:
                    return end.value
                left_open = in_atomic_block() - of_the_caller
                try:
                    resume = partial(generator.send, (yield value))
                except BaseException as error:
                    is_closed = isinstance(error, GeneratorExit)
                    resume = partial(generator.throw, error)
        finally:
            work.finish(keep=of_the_caller, with_thread=not is_closed)

    return wrapper


def _async_generator(function: Callable[..., Any], using: frozenset[str] | None) -> Callable[..., Any]:
    name = partial(name_of, function)

    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        work = Work(using, name)
        generator = function(*args, **kwargs)
        resume = partial(generator.asend, None)
        try:
            while True:
                try:
                    with work:
                        value = await resume()
                except StopAsyncIteration:
                    return
                try:
                    resume = partial(generator.asend, (yield value))
                except BaseException as error:
                    resume = partial(generator.athrow, error)
        finally:
            await work.finish_async()

    return wrapper
