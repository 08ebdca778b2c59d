"""What a dict offers, versions and tags, and another capacity while running."""

import asyncio
import copy
import pickle
import random
from typing import Any

import pytest

from kvpredict.cache import (
    Cache,
    Cause,
    RedisInvalidation,
    RedisTier,
    Shadow,
    TieredCache,
    Tuner,
    WriteBehind,
    WriteThrough,
    load_snapshot,
    save_snapshot,
)
from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy_class, policy_names
from tests.cache.test_threads import together
from tests.contracts.factories import make
from tests.strategies import zipf_mix

POLICIES = [name for name in policy_names() if not policy_class(name).traits.oracle]


def test_many_at_once() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    assert cache.put_many({"a": 1, "b": 2}) == 2
    assert cache.put_many([("c", 3)], cost=2.0) == 1
    cache.update({"d": 4})
    assert cache.get_many(["a", "x", "d"]) == {"a": 1, "d": 4}
    assert (cache.stats().hits, cache.stats().misses) == (2, 1)
    assert sorted(cache.items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert sorted(cache.keys()) == sorted(cache) == ["a", "b", "c", "d"]
    assert sorted(cache.values()) == [1, 2, 3, 4]
    assert dict(cache) == dict(cache.items())


def test_pop_and_setdefault() -> None:
    cache: Cache[str, Any] = Cache(2, "lru")
    cache["a"] = None
    assert cache.pop("a") is None
    assert cache.pop("a", 7) == 7
    with pytest.raises(KeyError, match="'a'"):
        cache.pop("a")
    assert cache.setdefault("b", 1) == 1
    assert cache.setdefault("b", 2) == 1
    weighed: Cache[str, str] = Cache(2, "lru", weigher=len)
    assert weighed.setdefault("b", "too large") == "too large"


def test_only_one_thread_pops_and_only_one_sets_the_default() -> None:
    cache: Cache[str, int] = Cache(2, "lru")
    for _ in range(200):
        assert len(set(together(lambda i: cache.setdefault("k", i), threads=3))) == 1
        popped = together(lambda i: cache.pop("k", None), threads=3)
        assert sum(value is not None for value in popped) == 1


# --- compare and set, versions, tags ---------------------------------------------------------------------------------


def test_compare_and_set_loses_no_update() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    cache["n"] = 0

    def work(i: int) -> None:
        for _ in range(500):
            while True:
                value, token = cache.read("n")
                assert value is not None
                if cache.put_if("n", value + 1, token):
                    break

    together(work)
    assert cache["n"] == 4000


def test_a_token_is_of_one_put_only() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    assert cache.put_if("a", 1, None)
    assert not cache.put_if("a", 2, None)
    _, token = cache.read("a")
    cache.delete("a")
    cache["a"] = 1  # an equal value of a later put
    assert not cache.put_if("a", 2, token)
    value, token = cache.read("a")
    cache["a"] = value  # this very object, put in anew
    assert not cache.put_if("a", 2, token)
    _, token = cache.read("a")
    assert cache.read("a")[1] is token  # of the same put
    cache.get("a")
    cache.swap_policy("sieve")
    cache.resize(20)
    assert cache.put_if("a", 2, token)
    assert cache["a"] == 2


def test_an_older_version_never_replaces_a_later_one() -> None:
    cache: Cache[str, str] = Cache(10, "lru")
    assert cache.put("a", "v5", version=5)
    assert not cache.put("a", "v4", version=4)
    assert cache["a"] == "v5"
    assert cache.put("a", "v5 again", version=5)
    assert not cache.invalidate("a", before=5)
    assert cache["a"] == "v5 again"
    assert cache.invalidate("a", before=6)
    assert cache.get("a") is None
    cache["plain"] = "x"
    assert cache.invalidate("plain", before=1)  # of unknown version
    cache.put("b", "v1", version=1)
    cache["b"] = "unversioned"  # the caller's word
    assert cache["b"] == "unversioned"
    with pytest.raises(KvpredictError, match="version"):
        cache.put("a", "x", version="new")  # type: ignore[arg-type]


def test_versions_under_threads_only_rise() -> None:
    cache: Cache[int, int] = Cache(20, "lru")

    def work(i: int) -> None:
        rng = random.Random(i)
        for step in range(2000):
            version = step + rng.randrange(50)
            cache.put(step % 10, version, version=version)
            value = cache.get(step % 10)
            assert value is not None
            assert value >= version or value == version

    together(work)
    cache.validate()


def test_tags_take_out_all_that_carry_them() -> None:
    cache: Cache[int, int] = Cache(4, "lru")
    for key in range(6):
        cache.put(key, key, tags=("even" if key % 2 == 0 else "odd", "all"))
    cache.put(5, 5, tags=("other",))
    cache[9] = 9
    assert cache.invalidate_tags("even") == 1  # 0, 1 and 2 were evicted
    assert sorted(cache) == [3, 5, 9]
    assert cache.invalidate_tags("odd", "nothing") == 1
    assert cache.invalidate_tags("other", "all") == 1
    assert list(cache) == [9]
    assert cache._tagged == {}
    with pytest.raises(KvpredictError, match="tuple of texts"):
        cache.put(1, 1, tags="all")  # type: ignore[arg-type]


def test_the_index_of_tags_holds_what_the_cache_holds() -> None:
    cache: Cache[int, int] = Cache(30, "s3fifo")
    rng = random.Random(2)
    for step in range(4000):
        key = rng.randrange(80)
        draw = rng.random()
        if draw < 0.7:
            tags = tuple(rng.sample("abcdefgh", rng.randrange(3)))
            cache.put(key, step, tags=tags)
        elif draw < 0.9:
            cache.delete(key)
        elif draw < 0.99:
            cache.invalidate_tags(rng.choice("abcdefgh"))
        elif draw < 0.995:
            cache.resize(rng.randrange(5, 40))
        else:
            cache.clear()
    expected: dict[str, set[int]] = {}
    for key, entry in cache._entries.items():
        for tag in getattr(entry.value, "tags", ()):
            expected.setdefault(tag, set()).add(key)
    assert cache._tagged == expected
    cache.validate()


# --- capacity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_another_capacity(name: str) -> None:
    chosen = make(name)
    cache: Cache[int, int] = Cache(100, chosen, seed=1)
    extra = dict.fromkeys(chosen.extra, 1.0)

    def use(seed: int) -> None:
        for key in zipf_mix(1500, 300, seed).tolist():
            if cache.get(key) is None:
                cache.put(key, key, extra=extra)
        cache.validate()

    use(1)
    for capacity in (37, 1, 250, 60):
        before = set(cache)
        cache.resize(capacity)
        cache.validate()
        assert len(cache) == min(len(before), capacity)
        assert set(cache) <= before
        assert cache.capacity == capacity
        use(capacity)
        assert 0 < len(cache) <= capacity
    stats = cache.stats()
    assert stats.inserts == stats.evictions + stats.entries


def test_shrinking_evicts_in_the_policys_order() -> None:
    told: list[Any] = []
    cache: Cache[int, int] = Cache(6, "lru", on_removal=lambda *what: told.append(what))
    for key in range(6):
        cache[key] = key
    cache.get(0)
    cache.resize(3)
    assert told == [(key, key, Cause.EVICTED) for key in (1, 2, 3)]
    assert sorted(cache) == [0, 4, 5]
    cache[6] = 6
    assert sorted(cache) == [0, 5, 6]
    cache.resize(5)
    cache[7] = cache[8] = 7
    assert len(cache) == 5


def test_a_weighed_cache_takes_another_capacity() -> None:
    cache: Cache[str, str] = Cache(10, "sieve", weigher=len)
    for key in "abcde":
        cache[key] = "xx"
    cache.resize(5)
    assert (cache.stats().size, len(cache)) == (4, 2)
    cache.resize(3000)
    for key in range(2000):
        cache[str(key)] = "y"
    assert len(cache) == 2002
    cache.validate()
    bounded: Cache[str, str] = Cache(10, "lru", weigher=len, max_entries=2)
    bounded["a"] = bounded["b"] = "x"
    bounded.resize(20, max_entries=3)
    bounded["c"] = "x"
    assert len(bounded) == 3
    with pytest.raises(KvpredictError, match="max_entries"):
        cache.resize(10, max_entries=5)
    with pytest.raises(KvpredictError, match="capacity"):
        cache.resize(0)


def test_resizing_under_load() -> None:
    cache: Cache[int, int] = Cache(100, "s3fifo")
    cache.resize(101)  # compiled before

    def work(i: int) -> None:
        rng = random.Random(i)
        for step in range(1500):
            if i == 0 and step % 50 == 0:
                cache.resize(rng.randrange(10, 300))
            key = rng.randrange(400)
            value = cache.get(key)
            assert value in (None, key)
            cache.put(key, key)

    together(work)
    cache.validate()


@pytest.mark.parametrize("items", [[(1, 2, 3)], [(1, 2), 5], 5, "ab"])
def test_items_that_are_no_pairs_put_nothing_in(items: Any) -> None:
    cache: Cache[Any, Any] = Cache(10)
    for put in (cache.put_many, cache.update):
        with pytest.raises(KvpredictError, match="pairs"):
            put(items)
    assert len(cache) == 0


def test_wrong_tags_and_versions_are_named() -> None:
    cache: Cache[Any, Any] = Cache(10)
    cache.put(1, 1, version=1)
    with pytest.raises(KvpredictError, match="tags"):
        cache.invalidate_tags(5)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="tags for key 2"):
        cache.put(2, 2, tags=5)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="before"):
        cache.invalidate(1, before="x")  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="timeout"):
        cache.get_or_load(3, abs, timeout=-1)
    with pytest.raises(KvpredictError, match="timeout"):
        asyncio.run(cache.aget_or_load(3, abs, timeout="1"))  # type: ignore[arg-type]
    for wrong in (-1, 0, "5"):
        with pytest.raises(KvpredictError, match="seconds"):
            cache.stats().last(wrong)  # type: ignore[arg-type]
    assert list(cache) == [1]


@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cache_is_not_copied(copy_it: Any) -> None:
    with pytest.raises(KvpredictError, match=r"a Cache is neither .* save_snapshot"):
        copy_it(Cache(3))


@pytest.mark.parametrize("make_it", [
    lambda: WriteThrough(5, print), lambda: WriteBehind(5, print), lambda: Shadow(5), lambda: Tuner(5),
    lambda: RedisInvalidation(5, "redis://localhost"), lambda: save_snapshot(5, "s"), lambda: load_snapshot(5, "s"),
])  # fmt: skip
def test_what_is_no_cache_is_refused(make_it: Any) -> None:
    with pytest.raises(KvpredictError, match=r"cache must be a Cache.* got int"):
        make_it()


def test_parts_of_a_tiered_cache_are_checked() -> None:
    with pytest.raises(KvpredictError, match="tiers must be a sequence"):
        TieredCache(10, tiers=None)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="tier must be a Tier, got int"):
        TieredCache(10, tiers=[5])  # type: ignore[list-item]
    with pytest.raises(KvpredictError, match="url must be a text"):
        RedisTier(None)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="prefix must be a text"):
        RedisTier("redis://localhost", prefix=5)  # type: ignore[arg-type]
