"""``auto_close_db``: a call, or a block, gives its connections back when it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from functools import partial, wraps
from inspect import isasyncgenfunction, isgeneratorfunction
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction

from django_mysqlpool.mysqlpool.registry import in_atomic_block

from .work import Work, current_runner, name_of, run_as_work

F = TypeVar("F", bound=Callable[..., Any])
Using = str | Iterable[str] | None


@overload
def auto_close_db(function: F, /) -> F: ...
@overload
def auto_close_db(*, using: Using = None) -> AutoCloseDb: ...
def auto_close_db(function: Any = None, /, *, using: Using = None) -> Any:
    """Give the pooled connections of a call, or of a block, back when it ends.

    ``@auto_close_db``, ``@auto_close_db()`` and ``@auto_close_db(using="alias")``, or a list of aliases, decorate whatever
    can be called: functions and methods, static and class methods, callable objects, partials, coroutine functions,
    generators and asynchronous generators. ``with auto_close_db():`` and ``async with auto_close_db():`` do the same for a
    block.

    They go back however it ends; what it left open in a transaction is rolled back. Inside an ``atomic()`` block of the
    caller's, that block's connection stays. Inside another ``auto_close_db`` it is the outer one's end that counts.

    Raises ``TypeError`` where ``using`` is no alias or list of aliases, and, when called, ``ConnectionDoesNotExist`` for an
    alias that ``DATABASES`` does not have.
    """
    release = AutoCloseDb(using)
    return release if function is None else release(function)


class AutoCloseDb:
    """What ``auto_close_db()`` returns: a decorator and a context manager, for any number of uses in any thread."""

    def __init__(self, using: Using = None) -> None:
        self.using = aliases(using)
        #: The blocks that are open, by who runs them.
        self._blocks: dict[object, list[tuple[Work, frozenset[str]]]] = {}

    def __call__(self, function: F, /) -> F:
        """Decorate ``function``."""
        return _decorated(function, self.using)  # type: ignore[no-any-return]

    def __enter__(self) -> None:
        of_the_caller = in_atomic_block()
        work = Work(self.using).__enter__()
        self._blocks.setdefault(work.runner, []).append((work, of_the_caller))

    def __exit__(self, *exception: object) -> None:
        work, of_the_caller = self._leave()
        work.finish(keep=of_the_caller)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exception: object) -> None:
        work, _ = self._leave()
        await work.finish_async()

    def _leave(self) -> tuple[Work, frozenset[str]]:
        runner = current_runner()
        blocks = self._blocks[runner]
        work, of_the_caller = blocks.pop()
        if not blocks:
            del self._blocks[runner]
        work.__exit__()
        return work, of_the_caller


def aliases(using: Using) -> frozenset[str] | None:
    """The aliases that ``using`` names; ``None``: all."""
    if using is None:
        return None
    if isinstance(using, str):
        return frozenset([using])
    names = tuple(using) if isinstance(using, Iterable) and not isinstance(using, (bytes, bytearray)) else (using,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"using is {using!r}; it must be an alias of DATABASES, or a list of them")
    return frozenset(names)


def called_by(function: Any) -> Any:
    """The function behind partials, or behind the ``__call__`` of an object; it knows of what kind a call is."""
    while isinstance(function, partial):
        function = function.func
    method = getattr(type(function), "__call__", None)  # noqa: B004 (which is asked whether it is written in Python)
    return method if hasattr(method, "__code__") else function


def is_coroutine_function(function: Any) -> bool:
    """Whether a call returns a coroutine, by its nature or because it is marked as such."""
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


# A generator's context variables are those of whoever takes its next step. So the work is the current one during a step
# only. While it waits for the next step, the generator keeps what it took, and with it its transaction.


def _generator(function: Callable[..., Any], using: frozenset[str] | None) -> Callable[..., Any]:
    name = partial(name_of, function)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        work = Work(using, name)
        generator = function(*args, **kwargs)
        resume = partial(generator.send, None)
        left_open: frozenset[str] = frozenset()
        of_the_caller: frozenset[str] = frozenset()
        # Dropped, it ends wherever the garbage collector finds it: what that thread is doing is not for it to end.
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
