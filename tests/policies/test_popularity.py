"""Popularity against a twin that recounts the accesses themselves."""

import math

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.policies import policy
from kvpredict.policies.popularity import probability
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.driver import DictHost
from tests.naive import Naive, NaiveSets, Request, naive_hits
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


class NaivePopularity(Naive):
    """Keep for each known key the times of its accesses, all of them; a forgotten key starts anew."""

    def __init__(self, capacity: int, slots: int, history: float, half_life: float) -> None:
        super().__init__(capacity)
        self.evicted = NaiveSets(int(slots * history)) if history else None
        self.half_life = max(half_life * slots, 1.0) if half_life else math.inf
        self.times: dict[int, list[int]] = {}
        self.held: set[int] = set()
        self.now = 0

    def rank(self, key: int) -> tuple[float, int]:
        f = sum(0.5 ** ((self.now - t) / self.half_life) for t in self.times[key])
        # The kernel keeps log2; rounding there must not decide, so ranks are compared after rounding here.
        return round(math.log2(f), 9), self.times[key][-1]

    def note(self, r: Request) -> None:
        self.times.setdefault(r.key, []).append(self.now)

    def hit(self, r: Request) -> None:
        self.now += 1
        self.note(r)

    def admit(self, r: Request) -> bool:
        self.now += 1
        if self.evicted:
            self.evicted.take(r.key)
        return True

    def evict(self, r: Request) -> int:
        victim = min(self.held, key=self.rank)
        self.held.remove(victim)
        lasting = self.rank(victim)[0] + self.now / self.half_life  # compared with others at any later time
        forgotten = self.evicted.add(victim, lasting) if self.evicted else victim
        if forgotten is not None:
            del self.times[forgotten]
        return victim

    def insert(self, r: Request) -> None:
        self.note(r)
        self.held.add(r.key)


@pytest.mark.parametrize("history", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(history: float, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        made = policy("popularity", history=history)
        result = simulate(trace, made, sequence.capacity, unit=unit)
        sizes = [max(size, 1) for size in sequence.sizes] if unit == "bytes" else [1] * len(sequence.sizes)
        slots = max(1, min(sequence.capacity // min(sizes), trace.unique))
        twin = NaivePopularity(sequence.capacity, slots, history, 0.0)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sizes, slots=slots)

    check()


@pytest.mark.parametrize("half_life", [0.3, 1.7, 30.0])
def test_equals_its_twin_with_forgetting(half_life: float) -> None:
    for seed in range(6):
        keys = zipf_mix(800, 40, seed=seed).tolist()
        twin = NaivePopularity(7, 7, 4.0, half_life)
        result = simulate(Trace.from_keys(keys), policy("popularity", half_life=half_life), 7)
        assert result.hit.tolist() == naive_hits(twin, keys, slots=7)


@pytest.mark.parametrize("half_life", [0.0, 2.0])
def test_probability_is_the_share_of_all_accesses(half_life: float) -> None:
    made = policy("popularity", history=16.0, half_life=half_life)
    host = DictHost(made, 10)
    keys = zipf_mix(500, 30, seed=3).tolist()
    for i, key in enumerate(keys):
        host.access(key, 1, float(i))
    weights = 0.5 ** (np.arange(len(keys))[::-1] / (half_life * 10)) if half_life else np.ones(len(keys))
    for key, slot in host.slot_of.items():
        share = weights[np.array(keys) == key].sum() / weights.sum()
        assert probability(host.state, slot) == pytest.approx(share, rel=1e-9)


def test_counts_survive_eviction_where_lfu_forgets_them() -> None:
    # Key 9 comes back again and again, one round too late for a cache that forgets what it evicted.
    round_of = [[9, *range(100 + 5 * i, 105 + 5 * i)] for i in range(30)]
    trace = Trace.from_keys([key for r in round_of for key in r])
    remembering = simulate(trace, "popularity", 4).hit[::6]
    forgetting = simulate(trace, policy("popularity", history=0.0), 4).hit[::6]
    assert remembering[2:].all()
    assert not forgetting.any()


def test_forgetting_follows_a_change() -> None:
    trace = Trace.from_keys(np.concatenate([np.arange(3000) % 5, 10 + np.arange(300) % 5]))
    assert simulate(trace, "popularity", 6).hit[-100:].mean() < 0.7
    assert simulate(trace, policy("popularity", half_life=4.0), 6).hit[-100:].all()


def test_refuses_bad_parameters() -> None:
    with pytest.raises(KvpredictError, match=r"popularity.*history"):
        policy("popularity", history=-1.0)
    for half_life in (-1.0, math.inf, math.nan):
        with pytest.raises(KvpredictError, match=r"popularity.*half_life"):
            policy("popularity", half_life=half_life)
