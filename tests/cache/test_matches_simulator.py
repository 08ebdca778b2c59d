"""Driven by a trace, the cache hits where the simulator hits: for every policy there is, request by request."""

from typing import Any

import numpy as np
import pytest

from kvpredict.cache import Cache
from kvpredict.policies import policy_class, policy_names
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.factories import make
from tests.strategies import zipf_mix

REQUESTS, UNIQUE = 4000, 400
EXACT: dict[str, Any] = {"read_buffer": 1, "train_aside": False}
POLICIES = [name for name in policy_names() if not policy_class(name).traits.oracle]


def trace_of(seed: int) -> Trace:
    """Zipf with scans, uneven times, and a size and a cost for each key."""
    keys = zipf_mix(REQUESTS, UNIQUE, seed)
    rng = np.random.default_rng(seed)
    _, ids = np.unique(keys, return_inverse=True)
    sizes = rng.integers(1, 40, ids.max() + 1)[ids]
    costs = rng.uniform(0.5, 9.0, ids.max() + 1)[ids]
    times = np.cumsum(rng.exponential(0.01, keys.size))
    return Trace(keys, times, sizes, {"cost": costs})


def with_columns(trace: Trace, names: tuple[str, ...]) -> Trace:
    """Add the extra columns that a policy reads, constant for a key."""
    made = {c: np.random.default_rng(j).uniform(0, 4, trace.unique)[trace.ids] for j, c in enumerate(names)}
    return Trace(trace.keys, trace.times, trace.sizes, {**made, **trace.columns})


def hits_of(
    cache: Cache[int, int], trace: Trace, clock: list[float], *, sized: bool, names: tuple[str, ...]
) -> list[int]:
    """Ask for each key of the trace in turn, and put in what is missing."""
    assert trace.times is not None
    assert trace.sizes is not None
    hits = []
    costs = trace.columns["cost"].tolist()
    columns = {name: trace.columns[name].tolist() for name in names}
    for i, (key, time, size) in enumerate(
        zip(trace.keys.tolist(), trace.times.tolist(), trace.sizes.tolist(), strict=True)
    ):
        clock[0] = time
        hit = cache.get(key) is not None
        hits.append(int(hit))
        if not hit:
            extra = {name: column[i] for name, column in columns.items()}
            cache.put(key, i, size=size if sized else None, cost=costs[i], extra=extra)
    return hits


@pytest.mark.parametrize("unit", ["objects", "bytes"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_hits_where_the_simulator_does(name: str, unit: str) -> None:
    chosen = make(name)
    trace = with_columns(trace_of(seed=3), chosen.extra)
    sized = unit == "bytes"
    assert trace.sizes is not None
    capacity = trace.capacity(0.1, unit)
    expected = simulate(trace, chosen, capacity, unit=unit, seed=7)
    slots = min(capacity // int(trace.sizes.min()), trace.unique) if sized else None
    now = [0.0]
    cache: Cache[int, int] = Cache(capacity, chosen, max_entries=slots, **EXACT, seed=7, clock=lambda: now[0])
    hits = hits_of(cache, trace, now, sized=sized, names=chosen.extra)
    differs = np.flatnonzero(np.array(hits) != expected.hit)
    assert differs.size == 0, f"first difference at request {differs[0]} of {len(trace)}"
    assert 0 < expected.hits < len(trace)
    cache.validate()
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (expected.hits, expected.misses)
    assert stats.inserts + stats.rejections == stats.misses
    assert stats.inserts - stats.evictions == stats.entries == len(cache)


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_of_hits_changes_little(name: str) -> None:
    chosen = make(name)
    trace = with_columns(trace_of(seed=4), chosen.extra)
    capacity = trace.capacity(0.2)
    now = [0.0]
    cache: Cache[int, int] = Cache(capacity, chosen, seed=7, clock=lambda: now[0])
    hits = sum(hits_of(cache, trace, now, sized=False, names=chosen.extra))
    cache.validate()
    assert cache.stats().hits == hits
    # Every put tells the policy of the hits before it, so only the times of hits within a batch are coarser.
    assert hits == pytest.approx(simulate(trace, chosen, capacity, seed=7).hits, rel=0.02)


def test_a_seed_is_a_seed() -> None:
    trace = trace_of(seed=5)
    runs = []
    for seed in (1, 1, 2):
        now = [0.0]
        cache: Cache[int, int] = Cache(40, "random", **EXACT, seed=seed, clock=lambda now=now: now[0])
        runs.append(hits_of(cache, trace, now, sized=False, names=()))
    assert runs[0] == runs[1] != runs[2]
