"""Values move between tiers as their policies decide, nothing deleted comes back, and a sick tier holds nobody up."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kvpredict.cache import Cache, Codec, DiskTier, Expiry, Guarded, Loaded, Loads, TieredCache, TierError
from kvpredict.core.errors import KvpredictError
from tests.cache.clock import Clock
from tests.cache.test_threads import together


class Dictionary:
    """A tier in a dict that can be told to fail."""

    def __init__(self, name: str = "dict", fill: str = "load", shared: bool = False) -> None:
        self.name, self.fill, self.shared = name, fill, shared
        self.rows: dict[bytes, bytes] = {}
        self.down = False
        self.calls = 0

    def _check(self) -> None:
        self.calls += 1
        if self.down:
            raise TierError(f"{self.name} is down")

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self.rows.get(key)

    def put(self, key: bytes, data: bytes, ttl: float | None) -> bool:
        self._check()
        self.rows[key] = data
        return True

    def holds(self, key: bytes) -> bool:
        return False

    def delete(self, key: bytes) -> None:
        self._check()
        self.rows.pop(key, None)

    def clear(self) -> None:
        self._check()
        self.rows.clear()

    def close(self) -> None:
        pass


def never(key: Any) -> Any:
    pytest.fail(f"{key!r} was loaded")


# --- disk ------------------------------------------------------------------------------------------------------------


def test_what_memory_evicts_is_found_on_disk(tmp_path: Path) -> None:
    with TieredCache[str, list[int]](2, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6)]) as cache:
        for n in range(10):
            assert cache.get_or_load(f"k{n}", lambda key: [int(key[1:])]) == [n]
        assert len(cache) == 2
        assert [cache.get_or_load(f"k{n}", never) for n in range(10)] == [[n] for n in range(10)]
        assert cache.get("k3") == [3]
        assert cache.get("nothing", 7) == 7
        tier = cache.tier_stats()[0]
        assert (tier.up, tier.errors, tier.hits) == (True, 0, 11)
    # The next process finds all of it, what was in memory at the end included.
    with TieredCache[str, list[int]](2, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6)]) as cache:
        assert [cache.get(f"k{n}") for n in range(10)] == [[n] for n in range(10)]


def test_the_disks_policy_decides_what_stays_there(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "t.db", 5_000, "lru")
    with TieredCache[int, bytes](1, "lru", tiers=[disk], codec=Codec(compress=None)) as cache:
        for n in range(200):
            cache.put(n, bytes(400))
        assert 8 <= len(disk.index) <= 12
        assert set(disk.index) == {str(n).encode() for n in range(199 - len(disk.index), 199)}
        rows = disk._db.execute("SELECT COUNT(*), SUM(LENGTH(data)) FROM entries").fetchone()
        assert rows[0] == len(disk.index)
        assert rows[1] <= 5_000
        assert cache.get(0) is None
    assert (tmp_path / "t.db").stat().st_size < 10 * 5_000


def test_a_write_and_a_deletion_reach_every_tier(tmp_path: Path) -> None:
    below = Dictionary()
    with TieredCache[str, int](1, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6), below]) as cache:
        cache.put("a", 1)
        cache.put("b", 1)  # a is on disk now
        cache.put("a", 2)
        cache.put("c", 1)
        assert cache.get("a") == 2
        assert cache.delete("a")
        assert cache.get("a") is None
        assert below.rows.keys() == {b'"b"', b'"c"'}
        cache.clear()
        assert [cache.get(key) for key in "abc"] == [None] * 3
        assert below.rows == {}


def test_a_ttl_holds_in_every_tier(tmp_path: Path) -> None:
    below = Dictionary()
    disk = DiskTier(tmp_path / "t.db", 10**6)
    with TieredCache[str, int](1, "lru", tiers=[disk, below], expiry=Expiry(ttl=0.3)) as cache:
        cache.get_or_load("a", lambda key: 1)
        cache.get_or_load("b", lambda key: Loaded(2, ttl=60))
        assert cache.get("a") == 1
        time.sleep(0.35)
        assert cache.get("a") is None
        assert cache.get("b") == 2
        assert not disk.holds(b'"a"')


def test_a_compute_in_expiry_is_refused() -> None:
    with pytest.raises(KvpredictError, match="compute"):
        TieredCache(1, tiers=[], expiry=Expiry(compute=lambda key, value: 1))
    with pytest.raises(KvpredictError, match="fill"):
        TieredCache(1, tiers=[Dictionary(fill="never")])
    with pytest.raises(KvpredictError, match="no loader"):
        TieredCache[str, int](1, tiers=[]).get_or_load("a")


def test_a_coroutine_function_given_to_a_thread_is_an_error() -> None:
    async def load(key: str) -> int:
        return 1

    cache: TieredCache[str, Any] = TieredCache(10, tiers=[Dictionary()])
    with pytest.raises(KvpredictError, match="use aget_or_load"):
        cache.get_or_load("k", load)
    assert len(cache) == 0


def test_use_after_close_is_one_clear_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = DiskTier(tmp_path / "t.db", 10**6)
    cache: TieredCache[int, int] = TieredCache(2, "lru", tiers=[disk], loader=abs)
    for key in range(4):
        cache.put(key, key)
    cache.close()
    cache.close()

    async def load() -> int:
        return await cache.aget_or_load(9)

    for use in (
        lambda: cache.put(9, 9), lambda: cache.get(1), lambda: cache.get(3), lambda: cache.get_or_load(9),
        lambda: cache.delete(1), lambda: cache.invalidate(1), cache.clear, lambda: asyncio.run(load()),
    ):  # fmt: skip
        with pytest.raises(KvpredictError, match="closed"):
            use()  # type: ignore[no-untyped-call]
    assert (len(cache), 3 in cache, cache.stats().entries) == (2, True, 2)
    assert not cache.local.invalidate(1)  # as a bus does, whose thread must go on
    for call in (lambda: disk.put(b"9", b"9", None), lambda: disk.delete(b"1"), disk.clear, lambda: disk.get(b"2")):
        with pytest.raises(TierError, match="closed"):
            call()  # type: ignore[no-untyped-call]
        disk.index.put(b"2", 1)
    disk.close()
    assert caplog.records == []
    with TieredCache[int, int](2, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6)]) as again:
        assert [again.get(key) for key in range(4)] == list(range(4))


def test_tiers_are_read_and_written_by_item_and_many_at_once() -> None:
    below = Dictionary()
    cache: TieredCache[int, int] = TieredCache(2, "lru", tiers=[below])
    assert cache.put_many({key: key for key in range(5)}) == 5
    cache[5] = 5
    assert cache.get_many(range(8)) == {key: key for key in range(6)}
    assert cache[0] == 0
    assert 1 not in cache  # memory alone
    with pytest.raises(KeyError, match="7"):
        cache[7]
    with pytest.raises(TypeError, match="iterable"):
        list(cache)  # type: ignore[call-overload]


OTHER = """
import sys
from kvpredict.cache import DiskTier, TierError
try:
    DiskTier(sys.argv[1], 10**6, timeout=0.05)
except TierError as error:
    print(error)
"""


def test_a_file_belongs_to_one_tier_of_one_process(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path / "t.db", 10**6)
    disk.put(b"k", b"v", None)
    with pytest.raises(TierError, match="one process, and one tier of it, at a time"):
        DiskTier(tmp_path / "t.db", 10**6, timeout=0.05)
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path / "t.db")], check=True, capture_output=True, text=True, timeout=60
    )
    assert "one process, and one tier of it, at a time" in done.stdout
    assert disk.get(b"k") == b"v"
    disk.close()
    again = DiskTier(tmp_path / "t.db", 10**6)
    assert again.get(b"k") == b"v"
    again.close()


def test_what_cannot_be_encoded_stays_in_memory() -> None:
    below = Dictionary()
    cache: TieredCache[str, Any] = TieredCache(10, tiers=[below])
    value = object()
    assert cache.get_or_load("a", lambda key: value) is value
    assert (below.rows, cache.unencodable) == ({}, 1)
    assert cache.get("a") is value


def test_damaged_values_are_misses() -> None:
    below = Dictionary()
    cache: TieredCache[str, int] = TieredCache(10, tiers=[below], loader=len)
    below.rows[b'"abc"'] = b"rubbish"
    assert cache.get_or_load("abc") == 3
    assert cache.tier_stats()[0].errors == 1
    assert below.rows[b'"abc"'] != b"rubbish"


def test_a_stampede_asks_every_tier_once() -> None:
    below = Dictionary()
    cache: TieredCache[str, int] = TieredCache(10, tiers=[below])
    calls = []

    def load(key: str) -> int:
        calls.append(key)
        time.sleep(0.05)
        return 1

    async def coroutine() -> int:
        async def aload(key: str) -> int:
            return load(key)

        return (await asyncio.gather(*(cache.aget_or_load("k", aload) for _ in range(4))))[0]

    assert together(lambda i: asyncio.run(coroutine()) if i % 2 else cache.get_or_load("k", load)) == [1] * 8
    assert calls == ["k"]
    assert below.calls == 2  # one look, one put


def test_a_look_that_finds_nothing_is_no_answer_for_who_can_load() -> None:
    below = Dictionary()
    cache: TieredCache[int, int] = TieredCache(10, tiers=[below], loads=Loads(negative_ttl=60, negative=(Exception,)))

    def work(i: int) -> None:
        for key in range(300):
            if i % 2:
                assert cache.get(key) in (None, -key)
            else:
                assert cache.get_or_load(key, lambda key: -key) == -key

    together(work)
    assert cache.stats().load_failures == 0
    cache.put(2, 5, version=5)
    assert not cache.put(2, 4, version=4)
    cache.memory.clear()
    assert cache.get(2) == 5


def test_nothing_deleted_comes_back_under_threads(tmp_path: Path) -> None:
    source = dict.fromkeys(range(30), 0)
    versions = threading.Lock()
    with TieredCache[int, int](5, "s3fifo", tiers=[DiskTier(tmp_path / "t.db", 3000), Dictionary()]) as cache:

        def work(i: int) -> None:
            rng = random.Random(i)
            for _ in range(250):
                key = rng.randrange(30)
                if rng.random() < 0.25:
                    with versions:
                        source[key] += 1
                    cache.delete(key)
                else:
                    least = source[key]
                    # Whoever deletes first changes the source, so after this look nothing older may be read … except
                    # by a reader between another's change and its deletion, which is one change behind.
                    assert cache.get_or_load(key, source.__getitem__) >= least - 8

        together(work)
        for key in range(30):
            cache.delete(key)
        assert {key: cache.get_or_load(key, source.__getitem__) for key in range(30)} == source
        for key in range(30):
            assert cache.get_or_load(key, never) == source[key]


def test_deletions_overtake_demotions(tmp_path: Path) -> None:
    """A reader after the deletion never sees the value, wherever the value was on its way to."""
    with TieredCache[int, int](2, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6)]) as cache:
        stop = threading.Event()

        def churn() -> None:
            n = 1000
            while not stop.is_set():
                cache.get_or_load(n, lambda key: key)
                n += 1

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for n in range(400):
                assert cache.get_or_load(1, lambda key, n=n: n) == n
                cache.delete(1)
        finally:
            stop.set()
            thread.join()


# --- breaker ---------------------------------------------------------------------------------------------------------


def test_a_tier_that_fails_is_left_alone_and_comes_back() -> None:
    clock = Clock()
    below = Dictionary()
    guarded = Guarded(below, failures=3, pause=1.0, clock=clock)
    cache: TieredCache[int, int] = TieredCache(1, "lru", tiers=[guarded])
    cache.get_or_load(0, lambda key: 0)
    below.down = True
    for key in range(1, 20):
        assert cache.get_or_load(key, lambda key: key) == key
    assert below.calls <= 6
    assert not cache.tier_stats()[0].up
    assert "is down" in cache.tier_stats()[0].error
    before = below.calls
    clock.now += 1.0
    cache.get_or_load(20, lambda key: key)
    assert below.calls == before + 1  # one trial
    clock.now += 1.0
    cache.get_or_load(21, lambda key: key)
    assert below.calls == before + 2
    below.down = False
    clock.now += 2.0  # the pause doubles
    cache.get_or_load(22, lambda key: key)
    assert cache.tier_stats()[0].up
    assert cache.get(0) == 0


def test_a_deletion_owed_to_a_tier_is_paid_before_it_is_read() -> None:
    clock = Clock()
    below = Dictionary()
    cache: TieredCache[str, int] = TieredCache(10, "lru", tiers=[Guarded(below, 1, 1.0, clock)])
    cache.put("a", 1)
    cache.put("b", 2)
    below.down = True
    cache.delete("a")
    below.down = False
    assert b'"a"' in below.rows
    assert cache.get("a") is None  # the tier is still left alone
    clock.now += 1.0
    assert cache.get("a") is None
    assert b'"a"' not in below.rows
    cache.memory.clear()
    assert cache.get("b") == 2


def test_a_large_debt_empties_the_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvpredict.cache.tiers.MOST_OWED", 10)
    clock = Clock()
    below = Dictionary()
    cache: TieredCache[int, int] = TieredCache(100, "lru", tiers=[Guarded(below, 1, 1.0, clock)])
    for key in range(30):
        cache.put(key, key)
    below.down = True
    for key in range(20):
        cache.delete(key)
    below.down = False
    clock.now += 1.0
    cache.memory.clear()
    assert cache.get(5) is None
    assert cache.get(25) is None
    assert below.rows == {}
    cache.put(1, 1)
    cache.memory.clear()
    assert cache.get(1) == 1


def test_a_file_that_is_no_tier_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(TierError, match="delete it to start afresh"):
        DiskTier(tmp_path / "t.db", 1000)
    with pytest.raises(TierError, match="must exist"):
        DiskTier(tmp_path / "no" / "t.db", 1000)
    with pytest.raises(KvpredictError, match="failures"):
        Guarded(Dictionary(), failures=0)
    assert Cache(1).capacity == 1
