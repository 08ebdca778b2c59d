"""Shadows: each misses what it misses alone, and holds what the table says."""

import numpy as np
import pytest

from kvpredict.core.objective import weigher
from kvpredict.core.policy import Event
from kvpredict.core.shadow import leaves, make_requests, make_shadows, shadow_kernels
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.strategies import zipf_mix

NAMES = ["lru", "s3fifo", "arc", "lfu", "sieve"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_each_shadow_misses_what_it_misses_alone(count: int, unit: str) -> None:
    names = NAMES[:count]
    keys = zipf_mix(3000, 300, seed=4)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, keys.max() + 1)[keys]
    trace = Trace(keys, sizes=sizes)
    sized = unit == "bytes"
    capacity = trace.capacity(0.1, unit)
    slots = capacity if sized else min(capacity, trace.unique)
    policies = [policy(name) for name in names]
    kernels = shadow_kernels([p.kernels() for p in policies], column=1, weigh=weigher(unit))
    shadows = make_shadows(policies, capacity, slots, seed=0)
    table = np.full((trace.unique, 1 + count), -1, np.int32)
    missed, gone = np.zeros(count), np.zeros(slots + 40, np.int64)
    requests = make_requests(32)
    held: set[int] = set()  # by the first shadow
    for start in range(0, len(trace), 32):
        part = slice(start, min(start + 32, len(trace)))
        n = part.stop - part.start
        requests.entry[:n] = trace.ids[part]
        requests.key[:n, 0] = trace.keys[part]
        requests.key[:n, 1] = sizes[part] if sized else 1
        requests.time[:n, 0] = np.arange(part.start, part.stop)
        requests.time[:n, 1] = 1.0
        kernels.lead(shadows, table, gone, missed, requests, 0, n // 2, 0)
        left = set(gone[1 : 1 + gone[0]].tolist())
        kernels.lead(shadows, table, gone, missed, requests, n // 2, n, 0)
        left |= set(gone[1 : 1 + gone[0]].tolist())
        kernels.follow(shadows, table, gone, missed, requests, n, 0, count)
        now = set(np.flatnonzero(table[:, 1] >= 0).tolist())
        assert held - now <= left <= held | set(trace.ids[part].tolist())
        held = now
    for k, name in enumerate(names):
        alone = simulate(trace, name, capacity, unit=unit)
        expected = alone.misses if not sized else int(sizes[alone.hit == 0].sum())
        assert missed[k] == expected, name
        shadow = leaves(shadows)[k]
        owners = np.flatnonzero(table[:, 1 + k] >= 0)
        policies[k].validate(shadow.state, np.sort(table[owners, 1 + k]))
        assert (shadow.slot[table[owners, 1 + k], 0] == owners).all()
    for entry in sorted(held):
        kernels.drop(shadows, table, entry)
    assert not (table[sorted(held)] >= 0)[:, 1:].any()
    assert leaves(shadows)[0].counts[1] == 0


def test_events_reach_a_shadow_whole() -> None:
    """GDSF weighs by cost, which comes with the event."""
    made = [policy("gdsf"), policy("lru")]
    kernels = shadow_kernels([p.kernels() for p in made], column=0, weigh=weigher("objects"))
    shadows = make_shadows(made, 2, 2, seed=0)
    table = np.full((3, 2), -1, np.int32)
    requests = make_requests(3)
    e = [Event(float(i), i, 1, cost, ()) for i, cost in enumerate([9.0, 1.0, 1.0])]
    for i, event in enumerate(e):
        requests.entry[i], requests.key[i], requests.time[i] = i, (event.key, event.size), (event.time, event.hint)
    gone, missed = np.zeros(9, np.int64), np.zeros(2)
    kernels.lead(shadows, table, gone, missed, requests, 0, 3, 0)
    kernels.follow(shadows, table, gone, missed, requests, 3, 0, 1)
    assert missed.tolist() == [3.0, 0.0]  # the second one sleeps
    kernels.follow(shadows, table, gone, missed, requests, 3, 0, 2)
    assert missed.tolist() == [3.0, 3.0]
    assert table[0, 0] >= 0 > table[1, 0]  # the dear one stays
    assert table[0, 1] < 0 <= table[1, 1]  # LRU does not care
