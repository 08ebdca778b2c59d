"""Prefetching turns itself on where one key follows another, and stays off, or goes off, where none does."""

import random
import threading
from typing import Any

import pytest

from kvpredict.cache import Cache, Prefetcher
from kvpredict.core.errors import KvpredictError
from tests.cache.test_threads import together


def chains(count: int, seed: int) -> list[int]:
    """Walks along one of 100 chains of five keys, chosen at random."""
    rng = random.Random(seed)
    return [5 * chain + i for chain in (rng.randrange(100) for _ in range(count)) for i in range(5)]


def read(prefetcher: Prefetcher[int, int], keys: list[int]) -> None:
    for key in keys:
        assert prefetcher.get_or_load(key) == -key
        prefetcher._background.join()


def test_it_learns_chains_and_pays() -> None:
    plain: Cache[int, int] = Cache(50, "lru")
    for key in chains(600, 1):
        plain.get_or_load(key, lambda key: -key)
    cache: Cache[int, int] = Cache(50, "lru")
    prefetcher = Prefetcher(cache, lambda key: -key)
    assert not prefetcher.active
    read(prefetcher, chains(600, 1))
    stats = prefetcher.stats()
    assert stats.active
    assert stats.switches == 1
    assert stats.benefit > 0.5
    assert stats.hits > 0.9 * stats.loads > 500
    assert cache.stats().hits > 3 * plain.stats().hits


def test_it_stays_off_where_nothing_follows() -> None:
    cache: Cache[int, int] = Cache(50, "lru")
    prefetcher = Prefetcher(cache, lambda key: -key, confidence=0.05, support=2, patience=20)
    rng = random.Random(2)
    read(prefetcher, [rng.randrange(300) for _ in range(8000)])
    stats = prefetcher.stats()
    assert stats.wasted > 100
    assert (stats.active, stats.loads) == (False, 0)
    assert stats.benefit < 0


def test_it_goes_off_when_the_workload_turns() -> None:
    cache: Cache[int, int] = Cache(50, "lru")
    prefetcher = Prefetcher(cache, lambda key: -key, patience=30)
    read(prefetcher, chains(600, 3))
    assert prefetcher.active
    rng = random.Random(4)
    read(prefetcher, [5 * rng.randrange(100) + rng.randrange(5) for _ in range(2500)])
    assert not prefetcher.active
    assert prefetcher.stats().switches == 2


def test_sessions_are_told_apart() -> None:
    walks = [[5 * c + i for i in range(5)] for c in range(60)]
    mixed: list[tuple[int, Any]] = []
    rng = random.Random(5)
    for _ in range(400):
        pair = rng.sample(walks, 2)
        steps = [(key, who) for who in (0, 1) for key in pair[who]]
        order = sorted(range(10), key=lambda i: (steps[i][0] % 5, rng.random()))
        mixed += [(steps[i][0], f"session {steps[i][1]}") for i in order]
    cache: Cache[int, int] = Cache(40, "lru")
    prefetcher = Prefetcher(cache, lambda key: -key)
    for key, session in mixed:
        prefetcher.get_or_load(key, session=session)
        prefetcher._background.join()
    assert prefetcher.stats().active
    assert prefetcher._followers[0].get(1, 0) == sum(prefetcher._followers[0].values())


def test_a_prefetch_that_fails_harms_nobody() -> None:
    cache: Cache[int, int] = Cache(50, "lru")
    broken = [False]

    def load(key: int) -> int:
        if broken[0] and threading.current_thread().name == "kvpredict-prefetch":
            raise OSError("down")
        return -key

    prefetcher = Prefetcher(cache, load)
    read(prefetcher, chains(400, 6))
    broken[0] = True
    read(prefetcher, chains(50, 7))
    assert prefetcher.stats().failures > 0


def test_many_threads_may_read() -> None:
    cache: Cache[int, int] = Cache(50, "s3fifo")
    prefetcher = Prefetcher(cache, lambda key: -key)
    together(lambda i: [prefetcher.get_or_load(key) for key in chains(150, i)])
    stats = prefetcher.stats()
    assert stats.predictions > 500
    assert stats.used + stats.wasted + len(prefetcher._foretold) == stats.predictions
    assert stats.switches <= (stats.used + stats.wasted) // 100
    assert len(prefetcher._foretold) <= len(prefetcher._line)
    cache.validate()


@pytest.mark.parametrize("wrong", [
    {"confidence": 0}, {"price": -1}, {"support": 0}, {"patience": 0}, {"keys": 0},
])  # fmt: skip
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(KvpredictError, match=next(iter(wrong))):
        Prefetcher(Cache[int, int](10), abs, **wrong)
