"""What a type checker makes of ``auto_close_db``; ``tests/test_typing.py`` has mypy read it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from typing_extensions import assert_type

from django_mysqlpool import PooledThreadPoolExecutor, auto_close_db


@auto_close_db
def bare(number: int, *, name: str = "") -> str:
    return name * number


@auto_close_db()
def with_parentheses(number: int) -> str:
    return str(number)


@auto_close_db(using=["default"])
async def coroutine(number: int) -> str:
    return str(number)


@auto_close_db
def generator(number: int) -> Iterator[int]:
    yield number


@auto_close_db
async def async_generator(number: int) -> AsyncIterator[int]:
    yield number


class Methods:
    @auto_close_db
    def method(self, number: int) -> str:
        return str(number)

    @auto_close_db
    @staticmethod
    def static_below(number: int) -> str:
        return str(number)

    @staticmethod
    @auto_close_db
    def static_above(number: int) -> str:
        return str(number)

    @auto_close_db
    @classmethod
    def class_below(cls, number: int) -> str:
        return str(number)

    @classmethod
    @auto_close_db(using="default")
    def class_above(cls, number: int) -> str:
        return str(number)


def check() -> None:
    assert_type(bare(1, name="a"), str)
    assert_type(with_parentheses(1), str)
    made = assert_type(coroutine(1), Coroutine[Any, Any, str])
    made.close()
    assert_type(generator(1), Iterator[int])
    assert_type(async_generator(1), AsyncIterator[int])
    assert_type(Methods().method(1), str)
    assert_type(Methods.static_below(1), str)
    assert_type(Methods.static_above(1), str)
    assert_type(Methods.class_below(1), str)
    assert_type(Methods.class_above(1), str)
    assert_type(auto_close_db(partial(bare, name="a"))(1), str)
    with auto_close_db(using={"default"}):
        pass
    with PooledThreadPoolExecutor(using="default") as executor:
        assert_type(executor.submit(bare, 1), Future[str])
        assert_type(executor.map(bare, [1]), Iterator[str])


async def check_async() -> None:
    async with auto_close_db():
        assert_type(await coroutine(1), str)


def refused() -> None:
    bare("1")  # type: ignore[arg-type]
    bare(1, nme="a")  # type: ignore[call-arg]
    made = coroutine()  # type: ignore[call-arg]
    made.close()
    Methods().method("1")  # type: ignore[arg-type]
    auto_close_db(using=5)  # type: ignore[call-overload]
    auto_close_db("default")  # type: ignore[call-overload]
    wrong: Callable[[str], str] = bare  # type: ignore[assignment]
    del wrong
