"""Who asked to be told is told of every value that leaves, with the cause, while no lock is held."""

import threading
from typing import Any

import pytest

from kvpredict.cache import Cache, Cause
from kvpredict.core.errors import KvpredictError
from tests.cache.clock import Clock
from tests.cache.test_threads import together


def test_every_cause_is_told() -> None:
    clock = Clock()
    told: list[Any] = []
    cache: Cache[str, int] = Cache(2, "lru", ttl=10, clock=clock, on_removal=lambda *what: told.append(what))
    cache["a"] = 1
    cache["a"] = 2
    cache["b"] = 3
    cache["c"] = 4
    cache.delete("b")
    clock.now += 10
    assert cache.get("c") is None
    cache["d"] = 5
    cache.clear()
    assert told == [
        ("a", 1, Cause.REPLACED), ("a", 2, Cause.EVICTED), ("b", 3, Cause.DELETED), ("c", 4, Cause.EXPIRED),
        ("d", 5, Cause.DELETED),
    ]  # fmt: skip
    assert Cause.EVICTED == "evicted"


def test_a_value_refused_replaces_nothing_but_its_elder() -> None:
    told: list[Any] = []
    cache: Cache[str, str] = Cache(3, "lru", weigher=len, on_removal=lambda *what: told.append(what))
    cache["a"] = "x"
    assert not cache.put("a", "xxxx")
    assert not cache.put("b", "xxxx")
    assert told == [("a", "x", Cause.REPLACED)]


def test_a_listener_may_use_the_cache_from_any_thread() -> None:
    told: list[Any] = []

    def listener(key: int, value: int, cause: Cause) -> None:
        told.append(key)
        other = threading.Thread(target=lambda: (cache.get(key), cache.stats(), cache.delete(-1)))
        other.start()  # would wait for ever if a lock were held here
        other.join(20)
        assert not other.is_alive()
        cache.delete(key + 1)

    cache: Cache[int, int] = Cache(4, "lru", on_removal=listener)
    for key in range(0, 20, 2):
        cache.put_many({key: 1, key + 1: 1})
    assert len(told) > 10
    cache.validate()


def test_a_listener_that_evicts_does_not_recurse() -> None:
    told: list[int] = []

    def listener(key: int, value: int, cause: Cause) -> None:
        told.append(key)
        if len(told) < 3000:
            cache[len(told)] = 1

    cache: Cache[int, int] = Cache(1, "lru", on_removal=listener)
    cache[0] = 1
    cache[-1] = 1
    assert len(told) == 3000


def test_what_a_listener_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def listener(key: int, value: int, cause: Cause) -> None:
        raise ArithmeticError("listener")

    cache: Cache[int, int] = Cache(1, "lru", on_removal=listener)
    cache[1] = 1
    cache[2] = 2
    assert cache[2] == 2
    assert "on_removal failed for key 1" in caplog.text


def test_each_removal_is_told_once_under_threads() -> None:
    told: list[tuple[int, int]] = []
    cache: Cache[int, int] = Cache(50, "s3fifo", on_removal=lambda key, value, cause: told.append((key, value)))
    put: list[list[tuple[int, int]]] = [[] for _ in range(8)]

    def work(i: int) -> None:
        for step in range(1500):
            key, value = (step * 7 + i) % 120, 8 * step + i
            cache.put(key, value)
            put[i].append((key, value))
            if step % 9 == 0:
                cache.delete((key * 3) % 120)

    together(work)
    assert sorted([*told, *cache.items()]) == sorted(pair for pairs in put for pair in pairs)


def test_a_listener_is_callable() -> None:
    with pytest.raises(KvpredictError, match="on_removal"):
        Cache(1, "lru", on_removal=5)  # type: ignore[arg-type]
