"""Decorated functions and coroutines: one execution a key, information, invalidation, and one switch."""

import asyncio
import functools
import subprocess
import sys
from typing import Any

import pytest

import kvpredict as kvp
from kvpredict.cache import Cache, Cause, TieredCache, cached, caching_off, set_caching
from kvpredict.core.errors import KvpredictError
from tests.cache.test_threads import together


def test_a_function_is_called_once_for_a_key() -> None:
    calls: list[Any] = []

    @kvp.cached(100)
    def add(a: int, b: int = 0, *, scale: int = 1) -> int:
        """Add."""
        calls.append((a, b, scale))
        return (a + b) * scale

    assert [add(1, 2), add(1, 2), add(1, b=2), add(1, 2, scale=3), add(1, 2, scale=3)] == [3, 3, 3, 9, 9]
    assert len(calls) == 3
    assert add.cache_info() == (2, 3, 100, 3)
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert add.__wrapped__(5, 5) == 10
    assert add.invalidate(1, 2)
    assert not add.invalidate(1, 2)
    add(1, 2)
    assert len(calls) == 5
    add.cache_clear()
    assert add.cache_info().currsize == 0


def test_functions_share_a_cache_without_mixing_up() -> None:
    cache: Cache[Any, Any] = Cache(100)
    double = cached(cache)(lambda n: 2 * n)

    @cached(cache)
    def triple(n: int) -> int:
        return 3 * n

    assert (double(2), triple(2), double(2)) == (4, 6, 4)
    assert double.cache is triple.cache is cache
    assert len(cache) == 2


def test_coroutines_are_awaited_once() -> None:
    calls = []

    @cached(10, key=lambda n: n % 10)
    async def slow(n: int) -> int:
        calls.append(n)
        await asyncio.sleep(0.01)
        return n

    async def main() -> list[int]:
        return await asyncio.gather(*(slow(n) for n in (3, 13, 3, 4)))

    assert asyncio.run(main()) == [3, 3, 3, 4]
    assert calls == [3, 4]
    assert slow.cache_key(27) == 7
    assert slow.invalidate(3)


def test_a_stampede_on_a_function_calls_it_once() -> None:
    import time

    calls = []

    @cached(10)
    def slow() -> object:
        calls.append(1)
        time.sleep(0.05)
        return object()

    assert len({id(value) for value in together(lambda i: slow())}) == 1
    assert calls == [1]


def test_ttl_and_tags() -> None:
    now = [0.0]
    cache: Cache[Any, Any] = Cache(10, clock=lambda: now[0])
    calls = []

    @cached(cache, ttl=5, tags=lambda user, n: (user,))
    def items(user: str, n: int) -> int:
        calls.append((user, n))
        return n

    items("ann", 1), items("ann", 2), items("bob", 1)
    assert cache.invalidate_tags("ann") == 2
    items("bob", 1)
    assert len(calls) == 3
    now[0] = 5.0
    items("bob", 1)
    assert len(calls) == 4


def test_one_switch_turns_all_caching_off() -> None:
    calls = []

    @cached(10)
    def work(n: int) -> int:
        calls.append(n)
        return n

    work(1)
    with caching_off():
        work(1), work(1), work(2)
    assert calls == [1, 1, 1, 2]
    assert work.cache_info().currsize == 1
    work(1)
    assert len(calls) == 4
    set_caching(False)
    try:
        work(1)
    finally:
        set_caching(True)
    assert len(calls) == 5


def test_the_environment_turns_caching_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPREDICT_CACHE", "off")
    code = (
        "from kvpredict.cache import cached; calls = []; f = cached(10)(lambda n: calls.append(n)); f(1); f(1); "
        "print(len(calls), f.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "0"]


def test_methods_name_their_objects_by_key() -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @cached(10, key=lambda self, n: (self.name, n))
        def price(self, n: int) -> str:
            return f"{self.name} {n}"

    assert Shop("a").price(1) == "a 1"
    assert Shop("b").price(1) == "b 1"
    assert Shop("a").price.cache_info().hits == 0
    assert Shop("a").price(1) == "a 1"


def test_wrong_use_is_told() -> None:
    with pytest.raises(KvpredictError, match="write @cached"):
        cached(len)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="key must be callable"):
        cached(10, key="id")  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="capacity"):
        cached(0)
    assert Cause.DELETED == "deleted"


def test_what_cannot_be_kept_is_refused() -> None:
    def generator() -> Any:
        yield 1

    async def agenerator() -> Any:
        yield 1

    for function in (generator, agenerator, functools.partial(generator)):
        with pytest.raises(KvpredictError, match="generator function"):
            cached(10)(function)
    for kind in (classmethod, staticmethod):
        with pytest.raises(KvpredictError, match=f"below {kind.__name__}"):
            cached(10)(kind(len))  # type: ignore[type-var]
    with pytest.raises(KvpredictError, match="decorates functions, got int"):
        cached(10)(5)  # type: ignore[type-var]
    with pytest.raises(KvpredictError, match="no name"):
        cached(10)(functools.partial(int, base=2))
    assert cached(10, key=str)(functools.partial(int, base=2))("11") == 3
    for wrong in (TieredCache(10, tiers=[]), "10", None, 1.5):
        with pytest.raises(KvpredictError, match=f"takes a Cache, or the capacity .* got {type(wrong).__name__}"):
            cached(wrong)  # type: ignore[arg-type]


def test_an_object_with_an_async_call_is_awaited() -> None:
    class Square:
        async def __call__(self, n: int) -> int:
            return n * n

    square: Any = cached(10, key=abs)(Square())

    async def main() -> list[int]:
        return [await square(3), await square(3)]

    assert asyncio.run(main()) == [9, 9]
    assert square.cache_info().hits == 1
