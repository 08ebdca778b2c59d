"""Cacheus against a twin that draws the same numbers."""

import math

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.core.random import seed_random
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.policies.draws import Draws
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


class NaiveCacheus(Naive):
    """SR-LRU as two lists, CR-LFU as a sort, histories as lists; everything oldest first."""

    def __init__(self, capacity: int, slots: int, scan_ratio: float = 0.01) -> None:
        super().__init__(capacity)
        self.slots = slots
        self.draws = Draws(int(seed_random(0)[0]))
        self.rate = self.draw_rate()
        self.rate_before = self.ratio_before = 0.0
        self.weights = {"lru": 0.5, "lfu": 0.5}
        self.limit = max(1, capacity - max(1, int(capacity * scan_ratio + 0.5)))  # of the list of the reused
        self.once: list[int] = []
        self.reused: list[int] = []
        self.demoted: set[int] = set()
        self.fresh: set[int] = set()
        self.frequency: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.history: dict[int, tuple[int, bool, int]] = {}  # key: frequency, fresh, size
        self.blamed: dict[str, dict[int, int]] = {"lru": {}, "lfu": {}}  # key: size
        self.now = self.hits = self.period = self.stalled = self.returned = 0
        self.evicted = False

    def draw_rate(self) -> float:
        return 1e-3 ** self.draws.uniform()

    def units(self, keys: list[int]) -> int:
        return sum(self.size[key] for key in keys)

    def tick(self, hit: int) -> None:
        self.now += 1
        if not self.evicted:
            return
        self.hits += hit
        self.period += 1
        if self.period < len(self.used):
            return
        ratio = self.hits / self.period
        gain, step = ratio - self.ratio_before, self.rate - self.rate_before
        self.rate_before, self.ratio_before = self.rate, ratio
        self.hits = self.period = 0
        if step != 0:
            change = abs(self.rate * step) * (1 if gain * step > 0 else -1)
            self.rate = min(max(self.rate + change, 1e-3), 1.0)
            self.stalled = 0
        elif ratio == 0 or gain <= 0:
            self.stalled += 1
            if self.stalled == 10:
                self.stalled = 0
                self.rate = self.draw_rate()

    def demote(self) -> None:
        while self.units(self.reused) > self.limit:
            key = self.reused.pop(0)
            self.once.append(key)
            self.demoted.add(key)

    def fresh_ghosts(self) -> int:
        return sum(fresh for _, fresh, _ in self.history.values())

    def hit(self, r: Request) -> None:
        self.tick(1)
        self.frequency[r.key] += 1
        self.used[r.key] = self.now
        self.fresh.discard(r.key)
        if r.key in self.reused:
            self.reused.remove(r.key)
            self.reused.append(r.key)
            return
        if r.key in self.demoted:
            gained = max(1, int(self.fresh_ghosts() / max(len(self.demoted), 1) + 0.5)) * r.size
            self.limit = min(self.limit + gained, max(self.capacity - 1, 1))
            self.demoted.remove(r.key)
        self.once.remove(r.key)
        self.reused.append(r.key)
        self.demote()

    def admit(self, r: Request) -> bool:
        self.tick(0)
        for expert in self.blamed:
            if self.blamed[expert].pop(r.key, None) is not None:
                self.weights[expert] = max(self.weights[expert] * math.exp(-self.rate), 1e-10)
                total = sum(self.weights.values())
                self.weights = {name: weight / total for name, weight in self.weights.items()}
        self.returned = 0
        if r.key in self.history:
            self.returned, fresh, size = self.history[r.key]
            if fresh:
                gained = max(1, int(len(self.demoted) / max(self.fresh_ghosts(), 1) + 0.5)) * size
                self.limit = max(self.limit - gained, 1)
            del self.history[r.key]
        return True

    def evict(self, r: Request) -> int:
        self.evicted = True
        oldest = (self.once or self.reused)[0]
        rarest = min(self.used, key=lambda key: (self.frequency[key], -self.used[key]))
        expert = "lru" if self.draws.uniform() < self.weights["lru"] else "lfu"
        victim = oldest if expert == "lru" else rarest
        (self.once if victim in self.once else self.reused).remove(victim)
        self.demoted.discard(victim)
        size = self.size[victim]
        while sum(s for _, _, s in self.history.values()) + size > self.capacity or len(self.history) == self.slots:
            del self.history[next(iter(self.history))]
        self.history[victim] = (self.frequency[victim], victim in self.fresh, size)
        if oldest != rarest and size <= self.capacity // 2:
            record = self.blamed[expert]
            while sum(record.values()) + size > self.capacity // 2:
                del record[next(iter(record))]
            record[victim] = size
        self.fresh.discard(victim)
        del self.used[victim], self.frequency[victim]
        return victim

    def insert(self, r: Request) -> None:
        self.size[r.key] = r.size
        self.frequency[r.key] = self.returned + 1
        self.used[r.key] = self.now
        if self.returned:
            self.reused.append(r.key)
            self.demote()
        elif not self.once and self.units(self.reused) + r.size <= self.limit and not self.evicted:
            self.reused.append(r.key)
        else:
            self.once.append(r.key)
            self.fresh.add(r.key)


@pytest.mark.parametrize("scan_ratio", [0.01, 0.5])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(scan_ratio: float, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        made = policy("cacheus", scan_ratio=scan_ratio)
        result = simulate(trace, made, sequence.capacity, unit=unit)
        sizes = [max(size, 1) for size in sequence.sizes] if unit == "bytes" else [1] * len(sequence.sizes)
        slots = max(1, min(sequence.capacity // min(sizes), trace.unique))
        twin = NaiveCacheus(sequence.capacity, slots, scan_ratio)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sizes, slots=slots)

    check()


@pytest.mark.parametrize("capacity", [2, 9, 40])
def test_equals_its_twin_on_a_longer_trace(capacity: int) -> None:
    keys = zipf_mix(4000, 200, seed=capacity).tolist()
    result = simulate(Trace.from_keys(keys), "cacheus", capacity)
    assert result.hit.tolist() == naive_hits(NaiveCacheus(capacity, capacity), keys, slots=capacity)


def test_survives_scans_and_churn_that_empty_an_lru() -> None:
    rng = np.random.default_rng(0)
    hot = rng.integers(0, 30, 8000)
    scan = 1000 + np.arange(8000)
    scanned = Trace.from_keys(np.where(np.arange(8000) // 100 % 2, scan, hot))
    assert simulate(scanned, "cacheus", 40).misses < 0.98 * simulate(scanned, "lru", 40).misses
    loop = Trace.from_keys(np.arange(8000) % 60)
    assert simulate(loop, "lru", 40).hits == 0
    assert simulate(loop, "cacheus", 40).object_miss_ratio < 0.8


def test_refuses_a_share_of_all_or_nothing() -> None:
    for scan_ratio in (0.0, 1.0):
        with pytest.raises(KvpredictError, match=r"cacheus.*scan_ratio"):
            policy("cacheus", scan_ratio=scan_ratio)
