"""LeCaR against a twin that draws the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.core.random import seed_random
from kvpredict.policies import policy
from kvpredict.policies.lecar import LFU, LRU
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.contracts.driver import DictHost
from tests.naive import Naive, Request, naive_hits
from tests.policies.draws import Draws
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


class NaiveLeCaR(Naive):
    def __init__(self, capacity: int, slots: int, history_ratio: float = 1.0) -> None:
        super().__init__(capacity)
        self.draws = Draws(int(seed_random(0)[0]))
        self.weights = {"lru": 0.5, "lfu": 0.5}
        self.frequency: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.history: list[tuple[int, str, int, int]] = []  # key, expert, time, size; oldest first
        self.most_keys = max(int(slots * history_ratio), 1)
        self.most_units = int(capacity * history_ratio)
        self.now = 0

    def hit(self, r: Request) -> None:
        self.now += 1
        self.used[r.key] = self.now
        self.frequency[r.key] += 1

    def admit(self, r: Request) -> bool:
        self.now += 1
        for entry in [entry for entry in self.history if entry[0] == r.key]:
            self.history.remove(entry)
            _, expert, time, _ = entry
            regret = 0.005 ** ((self.now - time) / max(len(self.used), 1))
            weights = {**self.weights, expert: self.weights[expert] * math.exp(-0.45 * regret)}
            self.weights = {name: max(weight, 1e-10) for name, weight in weights.items()}
            total = sum(self.weights.values())
            self.weights = {name: weight / total for name, weight in self.weights.items()}
        return True

    def evict(self, r: Request) -> int:
        expert = "lru" if self.draws.uniform() < self.weights["lru"] else "lfu"
        rank = {"lru": lambda key: self.used[key], "lfu": lambda key: (self.frequency[key], self.used[key])}
        victim = min(self.used, key=rank[expert])
        size = self.size[victim]
        if size <= self.most_units:
            while sum(entry[3] for entry in self.history) + size > self.most_units:
                self.history.pop(0)
            self.history.append((victim, expert, self.now, size))
            self.history = self.history[-self.most_keys :]
        del self.used[victim], self.frequency[victim]
        return victim

    def insert(self, r: Request) -> None:
        self.used[r.key] = self.now
        self.frequency[r.key] = 1
        self.size[r.key] = r.size


@pytest.mark.parametrize("history_ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(history_ratio: float, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        made = policy("lecar", history_ratio=history_ratio)
        result = simulate(trace, made, sequence.capacity, unit=unit)
        sizes = [max(size, 1) for size in sequence.sizes] if unit == "bytes" else [1] * len(sequence.sizes)
        slots = max(1, min(sequence.capacity // min(sizes), trace.unique))
        twin = NaiveLeCaR(sequence.capacity, slots, history_ratio)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sizes, slots=slots)

    check()


def test_equals_its_twin_on_a_longer_trace() -> None:
    keys = zipf_mix(4000, 200, seed=5).tolist()
    result = simulate(Trace.from_keys(keys), "lecar", 20)
    assert result.hit.tolist() == naive_hits(NaiveLeCaR(20, 20), keys, slots=20)


def test_learns_which_expert_to_follow() -> None:
    rng = np.random.default_rng(2)
    popular = rng.zipf(1.3, 20_000) % 1000
    recent = np.arange(20_000) // 40 * 7 + rng.integers(0, 10, 20_000)  # a working set that moves on
    for keys, better in ((popular, LFU), (recent, LRU)):
        host = DictHost(policy("lecar"), 12)
        for i, key in enumerate(keys.tolist()):
            host.access(key, 1, float(i))
        assert host.state.weights[better] > 0.6


def test_refuses_bad_parameters() -> None:
    for bad in ({"learning_rate": 0.0}, {"discount": 0.0}, {"discount": 1.5}, {"history_ratio": 0.0}):
        with pytest.raises(KvpredictError, match=rf"lecar.*{next(iter(bad))}"):
            policy("lecar", **bad)
