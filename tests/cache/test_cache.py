"""What the cache promises its users: mapping semantics, sizes, errors, counters, the recorder, memory."""

import os
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from kvpredict.cache import Cache, Stats, stable_hash
from kvpredict.core.errors import KvpredictError, UnknownName
from kvpredict.policies import policy, policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace, hash_keys
from tests.strategies import zipf_mix


class Never:
    """Equal to nothing, and no truth value: a cache must never compare or test values."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("a value was compared")

    def __bool__(self) -> bool:
        raise AssertionError("a value was tested")

    __hash__ = None  # type: ignore[assignment]


def lru(capacity: int = 3, **arguments: Any) -> Cache[Any, Any]:
    return Cache(capacity, "lru", **arguments)


# --- mapping semantics -----------------------------------------------------------------------------------------------


def test_get_put_delete() -> None:
    cache = lru()
    assert cache.get("a") is None
    assert cache.get("a", 7) == 7
    assert cache.put("a", 1)
    assert cache.get("a") == 1
    assert cache.put("a", 2)
    assert cache["a"] == 2
    assert len(cache) == 1
    assert cache.delete("a")
    assert not cache.delete("a")
    assert "a" not in cache
    assert len(cache) == 0
    cache.validate()


def test_item_syntax() -> None:
    cache = lru()
    cache["a"] = 1
    assert "a" in cache
    assert cache["a"] == 1
    del cache["a"]
    with pytest.raises(KeyError, match="'a'"):
        cache["a"]
    with pytest.raises(KeyError, match="'a'"):
        del cache["a"]


@pytest.mark.parametrize("value", [None, 0, False, "", (), [], float("nan")])
def test_any_value_is_a_value(value: object) -> None:
    cache = lru()
    cache["k"] = value
    marker = object()
    assert cache.get("k", marker) is value
    assert cache.peek("k", marker) is value
    assert cache["k"] is value
    assert cache.get_or_load("k", lambda key: pytest.fail("the key is there")) is value


def test_values_are_never_looked_into() -> None:
    cache = lru(2)
    values = [Never() for _ in range(4)]
    for i, value in enumerate(values):
        cache.put(i, value)
        cache.put(i, value)
        assert cache.get(i) is value
    assert cache.get_or_load(9, lambda key: values[0]) is values[0]
    cache.delete(9)
    cache.swap_policy("sieve")
    cache.clear()


def test_equal_keys_are_one_key() -> None:
    cache = lru(5)
    cache[1] = "int"
    cache[1.0] = "float"
    cache[True] = "bool"
    assert len(cache) == 1
    assert cache[1] == "bool"
    cache.validate()


@pytest.mark.parametrize(
    "key", [0, -1, 2**63 - 1, -(2**63), 2**63, 2**64 + 3, -(2**70), "text", b"bytes", (1, "a"), None, 1.5]
)
def test_any_hashable_key(key: Any) -> None:
    cache = lru(1)
    cache[key] = "value"
    assert cache[key] == "value"
    cache["other"] = 1
    assert key not in cache
    cache.validate()


def test_eviction_is_the_policys() -> None:
    cache = lru(2)
    cache["a"], cache["b"] = 1, 2
    cache.get("a")
    cache["c"] = 3
    assert "b" not in cache
    assert sorted(cache) == ["a", "c"]


def test_neither_peek_nor_contains_is_a_use() -> None:
    cache = lru(2)
    cache["a"], cache["b"] = 1, 2
    assert cache.peek("a") == 1
    assert "a" in cache
    cache["c"] = 3
    assert "a" not in cache
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (0, 0)


def test_iteration_is_over_a_snapshot() -> None:
    cache = lru(4)
    for key in "abcd":
        cache[key] = key
    for key in cache:
        del cache[key]
    assert len(cache) == 0


def test_an_update_is_a_use() -> None:
    cache = lru(2)
    cache["a"], cache["b"] = 1, 2
    cache["a"] = 10
    cache["c"] = 3
    assert sorted(cache) == ["a", "c"]


def test_clear_starts_over_and_keeps_the_counters() -> None:
    cache = lru(2)
    for key in range(5):
        cache[key] = key
    cache.clear()
    assert len(cache) == 0
    assert cache.get(4) is None
    cache.validate()
    stats = cache.stats()
    assert (stats.inserts, stats.evictions, stats.deletions, stats.size) == (5, 3, 2, 0)
    for key in range(5):
        cache[key] = key
    assert len(cache) == 2
    cache.validate()


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_weigher_measures_capacity() -> None:
    cache: Cache[str, bytes] = Cache(10, "lru", weigher=len)
    assert cache.put("a", b"1234")
    assert cache.put("b", b"1234")
    assert cache.stats().size == 8
    assert cache.put("c", b"123456789")
    assert list(cache) == ["c"]
    assert cache.stats().size == 9
    cache.validate()


def test_what_is_larger_than_the_cache_is_refused() -> None:
    cache: Cache[str, bytes] = Cache(10, "lru", weigher=len)
    assert cache.put("a", b"1")
    assert not cache.put("b", bytes(11))
    assert list(cache) == ["a"]
    # The old value is out of date, so it goes even if the new one does not fit.
    assert not cache.put("a", bytes(11))
    assert len(cache) == 0
    assert cache.stats().rejections == 2
    cache.validate()


def test_an_update_may_change_the_size() -> None:
    cache: Cache[str, bytes] = Cache(10, "lru", weigher=len)
    cache["a"], cache["b"] = b"12", b"12"
    cache["a"] = b"12345678"
    assert cache.stats().size == 10
    cache["a"] = b"123456789"
    assert list(cache) == ["a"]
    cache["a"] = b""
    assert cache.stats().size == 1  # nothing is free
    assert cache.stats().updates == 3
    cache.validate()


def test_size_goes_before_the_weigher() -> None:
    cache: Cache[str, bytes] = Cache(10, "lru", weigher=len)
    cache.put("a", b"1", size=7)
    assert cache.stats().size == 7


def test_a_weighed_cache_makes_room_for_any_number_of_entries() -> None:
    cache: Cache[int, int] = Cache(100_000, "lru", weigher=lambda value: 1)
    for key in range(5000):
        cache[key] = key
    assert len(cache) == 5000
    assert all(cache.peek(key) == key for key in range(5000))
    cache.validate()
    cache.get(0)
    for key in range(5000, 104_999):
        cache[key] = key
    assert len(cache) == 100_000
    assert 0 in cache  # used later than the others that were there when the cache grew
    assert 1 not in cache
    assert 5000 in cache
    cache.validate()


def test_max_entries_bounds_a_weighed_cache() -> None:
    cache: Cache[int, int] = Cache(1000, "lru", weigher=lambda value: 1, max_entries=4)
    for key in range(9):
        cache[key] = key
    assert sorted(cache) == [5, 6, 7, 8]
    cache.validate()


def test_cost_reaches_the_policy() -> None:
    cache: Cache[str, int] = Cache(2, "gdsf")
    cache.put("dear", 1, cost=100.0)
    for key in range(20):
        cache.put(str(key), key)
    assert "dear" in cache


# --- counters --------------------------------------------------------------------------------------------------------


def test_stats_count_what_happened() -> None:
    cache = lru(2)
    assert np.isnan(cache.stats().hit_ratio)
    cache["a"] = 1
    cache.get("a")
    cache.get("a")
    cache.get("b")
    cache["a"] = 2
    cache["b"] = 2
    cache["c"] = 3
    cache.delete("c")
    cache.get_or_load("d", lambda key: key)
    expected = Stats(
        hits=2, misses=2, inserts=4, updates=1, evictions=1, rejections=0, deletions=1, loads=1, load_failures=0,
        entries=2, size=2, capacity=2,
    )  # fmt: skip
    assert cache.stats()._replace(load_seconds=0.0) == expected
    assert cache.stats().hit_ratio == 0.5


def test_stats_do_not_depend_on_the_buffer() -> None:
    counts = []
    for read_buffer in (1, 3, 64, 10_000):
        cache: Cache[int, int] = Cache(50, "lru", read_buffer=read_buffer)
        for key in zipf_mix(3000, 200, 1).tolist():
            if cache.get(key) is None:
                cache[key] = key
        counts.append(cache.stats())
    assert all(count == counts[0] for count in counts)  # LRU draws no other conclusion from a batch


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_is_at_least_one(capacity: int) -> None:
    with pytest.raises(KvpredictError, match=f"capacity must be at least 1, got {capacity}"):
        lru(capacity)


@pytest.mark.parametrize("capacity", [1.5, "10", None, True])
def test_capacity_is_a_whole_number(capacity: Any) -> None:
    with pytest.raises(KvpredictError, match="capacity must be a whole number, got"):
        lru(capacity)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("weigher", 3), ("clock", 3), ("key_hash", "stable"), ("recorder", print), ("read_buffer", 0), ("max_entries", 0),
     ("seed", 1.5), ("read_buffer", "64")],
)  # fmt: skip
def test_a_wrong_argument_is_named(name: str, wrong: Any) -> None:
    with pytest.raises(KvpredictError, match=name):
        lru(3, **{name: wrong})


def test_bytes_taken_for_entries_are_told_the_remedy() -> None:
    with pytest.raises(KvpredictError, match="max_entries"):
        Cache(10 * 2**30)
    with pytest.raises(KvpredictError, match="at most"):
        Cache(10**30)
    assert Cache(10 * 2**30, "lru", max_entries=10).put("a", 1, size=2**30)


def test_extra_columns_are_numbers() -> None:
    cache: Cache[str, int] = Cache(10, "lru")
    for wrong in ({"a": "b"}, 5):
        with pytest.raises(KvpredictError, match="extra for key 'k'"):
            cache.put("k", 1, extra=wrong)  # type: ignore[arg-type]


def test_unknown_policy_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'sieve'"):
        Cache(3, "seive")


@pytest.mark.parametrize("wrong", [None, 3, object])
def test_a_policy_is_a_name_a_policy_or_a_path(wrong: Any) -> None:
    with pytest.raises(KvpredictError, match="policy must be"):
        Cache(3, wrong)


@pytest.mark.parametrize("name", [name for name in policy_names() if name.startswith("belady")])
def test_oracles_are_refused(name: str) -> None:
    with pytest.raises(KvpredictError, match="future"):
        Cache(3, name)
    cache = lru()
    cache["a"] = 1
    with pytest.raises(KvpredictError, match="future"):
        cache.swap_policy(name)
    assert cache.policy.name == "lru"
    assert cache["a"] == 1


def test_a_path_without_a_policy_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(KvpredictError, match="missing"):
        Cache(3, str(tmp_path / "missing"))
    with pytest.raises(KvpredictError, match="missing"):
        Cache(3, tmp_path / "missing")


@pytest.mark.parametrize("call", [
    lambda cache: cache.get([]), lambda cache: cache.put([], 1), lambda cache: cache.delete([]),
    lambda cache: cache.peek([]), lambda cache: [] in cache, lambda cache: cache[[]],
    lambda cache: cache.get_or_load([], lambda key: 1),
])  # fmt: skip
@pytest.mark.parametrize("key_hash", [None, lambda key: 1])
def test_an_unhashable_key_is_an_error_and_changes_nothing(call: Any, key_hash: Any) -> None:
    cache = lru(key_hash=key_hash)
    cache["a"] = 1
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        call(cache)
    assert cache["a"] == 1
    cache.validate()


@pytest.mark.parametrize("weight", [-1, 1.5, "3", None])
def test_a_weigher_returns_whole_numbers(weight: Any) -> None:
    cache: Cache[str, int] = Cache(10, "lru", weigher=lambda value: weight)
    with pytest.raises(KvpredictError, match="the weigher's result for key 'a' must be a whole number"):
        cache.put("a", 1)
    assert len(cache) == 0


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf"), 1e200, "dear"])
def test_a_cost_is_a_finite_number(cost: Any) -> None:
    with pytest.raises(KvpredictError, match="cost for key 'a'"):
        lru().put("a", 1, cost=cost)


def test_a_key_hash_returns_64_bits() -> None:
    for wrong in (2**63, "x"):
        with pytest.raises(KvpredictError, match="key_hash must return an integer of 64 bits"):
            lru(key_hash=lambda key, wrong=wrong: wrong)["a"] = 1


# --- keys as policies see them ---------------------------------------------------------------------------------------


def numbers(cache: Cache[Any, Any]) -> list[int]:
    host = cache._ranking.host
    return sorted(host.key[host.live == 1].tolist())


def test_integers_are_their_own_numbers() -> None:
    cache = lru(8)
    for key in (5, -(2**63), np.int32(7), np.int64(-9)):
        cache[key] = 1
    assert numbers(cache) == sorted([5, -(2**63), 7, -9])


def test_unsigned_integers_are_numbered_as_in_a_trace() -> None:
    cache = lru(8)
    key = np.uint64(2**64 - 3)
    cache[key] = 1
    assert numbers(cache) == hash_keys(np.array([key])).tolist() == [-3]


def test_stable_hash_numbers_keys_as_a_trace_does() -> None:
    keys = ["a", b"b", (1, 2), 3, 2**80, "ä"]
    cache = lru(8, key_hash=stable_hash)
    for key in keys:
        cache[key] = 1
    assert numbers(cache) == sorted(hash_keys(keys).tolist())


def test_stable_hash_is_the_same_in_every_process() -> None:
    code = "from kvpredict.cache import stable_hash; print(stable_hash('order:7'), hash('order:7'))"
    lines = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert lines[0][0] == lines[1][0] == str(stable_hash("order:7"))
    assert lines[0][1] != lines[1][1]


# --- policies --------------------------------------------------------------------------------------------------------


def test_parameters_of_a_policy() -> None:
    cache: Cache[int, int] = Cache(100, policy("s3fifo", small_ratio=0.5))
    assert cache.policy.params()["small_ratio"] == 0.5
    assert repr(cache) == "Cache(capacity=100, policy='s3fifo', entries=0, size=0)"


@pytest.mark.parametrize("new", ["lru", "sieve", "s3fifo", "gdsf", "arc"])
def test_swapping_the_policy_keeps_every_entry(new: str) -> None:
    cache: Cache[int, int] = Cache(100, "lru")
    for key in zipf_mix(2000, 300, 2).tolist():
        cache.get_or_load(key, lambda key: key * 2)
    before = sorted(cache)
    assert len(before) == 100
    cache.swap_policy(new)
    assert cache.policy.name == new
    assert sorted(cache) == before
    assert all(cache.get(key) == key * 2 for key in before)
    cache.validate()
    for key in zipf_mix(2000, 300, 3).tolist():
        cache.get_or_load(key, lambda key: key * 2)
    cache.validate()
    stats = cache.stats()
    assert stats.inserts - stats.evictions == len(cache) == 100


def test_the_new_policy_gets_the_old_ones_order() -> None:
    cache = lru(4)
    for key in "abcd":
        cache[key] = key
    cache.get("a")
    cache.swap_policy("fifo")
    cache["e"] = "e"  # FIFO alone would have evicted a, the first in
    assert sorted(cache) == ["a", "c", "d", "e"]


def test_a_policy_from_a_path_is_loaded(tmp_path: Any) -> None:
    policy("guarded", margin=0.01).save(tmp_path / "policy")
    for source in (tmp_path / "policy", str(tmp_path / "policy")):
        cache: Cache[int, int] = Cache(30, source)
        assert cache.ready()
        assert cache.policy.params()["margin"] == 0.01
    with pytest.raises(UnknownName, match=r"unknown policy 'polices/mine'.*nor is there a folder of that name"):
        Cache(30, "polices/mine")


# --- the recorder ----------------------------------------------------------------------------------------------------


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[Any, int, str]] = []

    def record(self, key: Any, size: int = 1, op: str = "get") -> None:
        self.rows.append((key, size, op))


def test_the_recorder_sees_what_the_policy_sees() -> None:
    log = Log()
    cache: Cache[str, bytes] = Cache(10, "lru", weigher=len, recorder=log)
    cache.get("a")
    cache.put("a", b"123")
    cache.get("a")
    cache.get_or_load("b", lambda key: b"12")
    cache.peek("a")
    assert log.rows == [("a", 3, "set"), ("a", 3, "get"), ("b", 2, "set")]


def test_a_recording_replays_to_the_same_hits() -> None:
    log = Log()
    cache: Cache[int, int] = Cache(40, "s3fifo", read_buffer=1, recorder=log)
    for key in zipf_mix(3000, 300, 4).tolist():
        cache.get_or_load(key, lambda key: key)
    trace = Trace.from_keys([row[0] for row in log.rows])
    replayed = simulate(trace, "s3fifo", 40)
    assert replayed.hits == cache.stats().hits
    assert [op == "get" for _, _, op in log.rows] == (replayed.hit == 1).tolist()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_in_proportion_to_the_entries() -> None:
    n = 20_000
    lru(1)  # compiled outside the measurement
    tracemalloc.start()
    try:
        cache = lru(n)
        for key in range(10**6, 10**6 + n):
            cache[key] = None
        full = tracemalloc.get_traced_memory()[0] / n
        for key in range(2 * 10**6, 2 * 10**6 + 5 * n):
            cache[key] = None
            cache.get(key)
        later = tracemalloc.get_traced_memory()[0] / n
    finally:
        tracemalloc.stop()
    assert full < 175  # bytes an entry, with 32 for the integer that is its key
    assert later < 1.3 * full  # whatever the number of keys seen


def test_what_leaves_the_cache_is_let_go() -> None:
    import weakref

    class Value:
        pass

    cache = lru(2)
    values = [Value() for _ in range(5)]
    alive = [weakref.ref(value) for value in values]
    for key, value in enumerate(values):
        cache[key] = value
        cache.get(key)
    cache[4] = None
    del value, values
    assert [ref() is not None for ref in alive] == [False, False, False, True, False]


def test_interpreted_decides_as_compiled() -> None:
    code = (
        "from kvpredict.cache import Cache\n"
        "from tests.strategies import zipf_mix\n"
        "cache = Cache(30, 's3fifo')\n"
        "for key in zipf_mix(1500, 200, 6).tolist(): cache.get_or_load(key, lambda key: key)\n"
        "cache.swap_policy('sieve')\n"
        "for key in zipf_mix(500, 200, 7).tolist(): cache.get_or_load(key, lambda key: key)\n"
        "cache.validate()\n"
        "print(cache.stats()._replace(load_seconds=0), sorted(cache))\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    outcomes = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": off}, cwd=root, capture_output=True,
            text=True, check=True,
        ).stdout
        for off in ("0", "1")
    }  # fmt: skip
    assert len(outcomes) == 1
