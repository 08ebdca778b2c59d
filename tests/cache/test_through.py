"""After a write has returned nobody reads what was there before, however writes and reads overlap."""

import asyncio
import random
import threading
import time
from typing import Any

import pytest

from kvpredict.cache import Cache, WriteThrough
from kvpredict.core.errors import KvpredictError
from tests.cache.test_threads import together


def test_the_source_comes_first() -> None:
    source: dict[str, int] = {}
    store = WriteThrough(Cache[str, int](10), source.__setitem__, source.__delitem__)
    store.put("a", 1, ttl=60)
    assert (source, store.cache["a"]) == ({"a": 1}, 1)
    store.delete("a")
    assert (source, store.cache.get("a")) == ({}, None)
    with pytest.raises(KeyError):
        store.delete("a")  # the source's own error
    with pytest.raises(KvpredictError, match="no erase"):
        WriteThrough(Cache[str, int](10), source.__setitem__).delete("a")
    with pytest.raises(KvpredictError, match="write must be callable"):
        WriteThrough(Cache[str, int](10), 5)  # type: ignore[arg-type]


def test_a_write_that_fails_leaves_no_guess_behind() -> None:
    source = {"a": 1}

    def write(key: str, value: int) -> None:
        source[key] = value  # it came through, and then the connection broke
        raise OSError("broken")

    store = WriteThrough(Cache[str, int](10), write)
    store.cache["a"] = 1
    with pytest.raises(OSError, match="broken"):
        store.put("a", 2)
    assert store.cache.get_or_load("a", source.__getitem__) == 2


def test_coroutines_write_through() -> None:
    source: dict[str, int] = {}

    async def write(key: str, value: int) -> None:
        await asyncio.sleep(0.001 * value)
        source[key] = value

    async def erase(key: str) -> None:
        await asyncio.sleep(0)
        del source[key]

    store = WriteThrough(Cache[str, int](10), write, erase)

    async def main() -> None:
        await asyncio.gather(*(store.aput("a", value) for value in (3, 1, 2)))

    asyncio.run(main())
    assert store.cache.get_or_load("a", source.__getitem__) == source["a"] == 3
    asyncio.run(store.aput("a", 4))
    assert store.cache["a"] == 4
    asyncio.run(store.adelete("a"))
    assert (source, store.cache.get("a")) == ({}, None)


@pytest.mark.parametrize("capacity", [3, 100])
def test_nothing_stale_under_threads(capacity: int) -> None:
    source = dict.fromkeys(range(6), 0)
    clock = [0]
    lock = threading.Lock()

    def write(key: int, value: int) -> None:
        time.sleep(random.random() * 0.0003)
        with lock:
            clock[0] += 1
            source[key] = clock[0]  # the order of the source is the truth, whatever the callers' values
        time.sleep(random.random() * 0.0003)

    def load(key: int) -> int:
        value = source[key]
        time.sleep(random.random() * 0.0005)
        return value

    cache: Cache[int, Any] = Cache(capacity, "s3fifo")
    store = WriteThrough(cache, write)
    returned = dict.fromkeys(range(6), 0)  # the latest state of the source that a returned write is known to have seen

    def work(i: int) -> None:
        rng = random.Random(i)
        for _ in range(150):
            key = rng.randrange(6)
            if rng.random() < 0.4:
                store.put(key, None)
                seen = source[key]
                with lock:
                    returned[key] = max(returned[key], min(seen, clock[0]))
                cache.invalidate(key)  # None is no state of the source: let readers load
            else:
                least = returned[key]
                value = cache.get_or_load(key, load)
                assert value is None or value >= least

    together(work)
    cache.validate()


def test_after_overlapping_writes_the_cache_agrees_with_the_source() -> None:
    source: dict[int, int] = {}

    def write(key: int, value: int) -> None:
        time.sleep(random.random() * 0.001)
        source[key] = value
        time.sleep(random.random() * 0.001)

    store = WriteThrough(Cache[int, int](10), write)
    for _ in range(30):
        together(lambda i: store.put(1, i), threads=4)
        assert store.cache.get(1, source[1]) == source[1]
    store.put(1, 99)
    assert store.cache[1] == 99
    assert store._overlaps._under_way == {}


def test_each_kind_of_writer_writes_or_says_how() -> None:
    source: dict[str, int] = {}

    async def write(key: str, value: int) -> None:
        source[key] = value

    async def erase(key: str) -> None:
        del source[key]

    store = WriteThrough(Cache[str, int](10), write, erase)
    store.cache["a"] = 0
    with pytest.raises(KvpredictError, match=r"'a' .* use aput"):
        store.put("a", 1)
    with pytest.raises(KvpredictError, match=r"'a' .* use adelete"):
        store.delete("a")
    assert (source, store.cache.get("a")) == ({}, None)
    plain = WriteThrough(Cache[str, int](10), source.__setitem__, source.__delitem__)
    asyncio.run(plain.aput("b", 2))
    assert (source, plain.cache["b"]) == ({"b": 2}, 2)
    asyncio.run(plain.adelete("b"))
    assert (source, plain.cache.get("b")) == ({}, None)
