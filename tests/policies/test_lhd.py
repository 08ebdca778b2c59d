"""LHD against a twin that draws the same sample and computes every density from its definition."""

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.core.random import seed_random
from kvpredict.policies import policy
from kvpredict.policies.lhd import LHD
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.policies.draws import Draws, swap_remove
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix

CLASSES, RECENT, EXPLORE, LEARNING, DECAY = 16, 8, 32, 50, 0.9


class NaiveLHD(Naive):
    """Objects are dicts; ``held`` keeps the order that random draws refer to."""

    def __init__(self, capacity: int, made: LHD, slots: int) -> None:
        super().__init__(capacity)
        self.made, self.bins = made, made.bins
        self.shift = made.age_shift if made.age_shift >= 0 else self.fitting(slots)
        self.draws = Draws(int(seed_random(0)[0]))
        self.held: list[int] = []
        self.tag: dict[int, dict[str, int]] = {}
        self.recent: list[int | None] = [None] * RECENT
        self.head = self.now = self.configured = 0
        self.ahead = [slots] * -(-made.candidates // 4)
        self.due = made.reconfigure_every
        self.budget = capacity // 100
        self.hits = np.zeros((CLASSES, self.bins))
        self.evictions = np.zeros((CLASSES, self.bins))
        half, least = (1, 17) if made.simulator_prior else (max(1, slots // 2**self.shift), 1)
        self.density = [[(c + least) / (a / half + 1) for a in range(self.bins)] for c in range(CLASSES)]
        self.average = 0.0
        self.full = False

    def fitting(self, objects: int) -> int:
        shift = 0
        while 2**shift * self.bins < 100 * objects:
            shift += 1
        return shift

    def age(self, key: int) -> int:
        return min((self.now - self.tag[key]["time"]) >> self.shift, self.bins - 1)

    def rank(self, key: int) -> float:
        age, tag = self.age(key), self.tag[key]
        if age == self.bins - 1:
            return -1.0
        return self.density[tag["class"]][age] / tag["size"] + tag["explorer"]

    def use(self, key: int, age_sum: int) -> bool:
        tag = self.tag[key]
        tag["time"] = self.now
        tag["class"] = CLASSES - 1
        for log in range(CLASSES - 1):
            if age_sum * 2**log >= self.bins:
                tag["class"] = log
                break
        drawn = self.draws.next() % EXPLORE == 0
        tag["explorer"] = int(drawn and self.budget > 0 and self.configured < LEARNING)
        self.budget -= tag["explorer"] * tag["size"]
        return drawn

    def tick(self) -> None:
        self.now += 1
        if self.now < self.due:
            return
        self.due = self.now + max(self.made.reconfigure_every, 4 * len(self.held))
        self.hits *= DECAY
        self.evictions *= DECAY
        if self.made.age_shift < 0 and self.configured in (5, 25):
            self.rescale()
        for c in range(CLASSES):
            events = self.hits[c] + self.evictions[c]
            # From age a on: hits, over the events at each later age times the ages that they took to get there.
            later = np.cumsum(events[::-1])[::-1]
            hits, lifetime = np.cumsum(self.hits[c][::-1])[::-1], np.cumsum(later[::-1])[::-1]
            for a in range(self.bins - 1):
                self.density[c][a] = float(hits[a] / lifetime[a]) if later[a] > 1e-5 else 0.0
        self.configured += 1

    def rescale(self) -> None:
        wanted = self.fitting(len(self.held))
        while self.shift != wanted:
            finer = self.shift > wanted
            self.shift += -1 if finer else 1
            for counts in (self.hits, self.evictions):
                old = counts.copy()
                counts[:, :-1] = 0
                for a in range(self.bins - 1):
                    if not finer:
                        counts[:, a // 2] += old[:, a]
                        continue
                    counts[:, a] = old[:, a // 2] / 2
                    if a >= self.bins // 2:
                        counts[:, -1] += old[:, a]

    def hit(self, r: Request) -> None:
        tag, age = self.tag[r.key], self.age(r.key)
        self.hits[tag["class"], age] += 1
        self.budget += tag["explorer"] * tag["size"]
        last, tag["last"] = tag["last"], age
        self.use(r.key, age + last)
        self.tick()

    def evict(self, r: Request) -> int:
        if not self.full and self.made.age_shift < 0:
            self.rescale()
        self.full = True
        drawn: list[int] = []  # in runs of four, aligned, the last of which goes on at the beginning
        for ahead in self.ahead:
            start = ahead if ahead < len(self.held) else self.draws.below(len(self.held)) // 4 * 4
            drawn += [self.held[(start + i) % len(self.held)] for i in range(4)]
        drawn = drawn[: self.made.candidates]
        victim = min([*drawn, *(key for key in self.recent if key is not None)], key=self.rank)
        self.average = DECAY * self.average + (1 - DECAY) * max(self.rank(victim), 0.0)
        tag = self.tag[victim]
        self.evictions[tag["class"], self.age(victim)] += 1
        self.budget += tag["explorer"] * tag["size"]
        self.recent = [None if key == victim else key for key in self.recent]
        swap_remove(self.held, victim)
        self.ahead = [self.draws.below(len(self.held)) // 4 * 4 for _ in self.ahead]
        return victim

    def insert(self, r: Request) -> None:
        self.held.append(r.key)
        self.tag[r.key] = {"size": r.size, "last": 0}
        if not self.use(r.key, self.bins) and self.rank(r.key) < self.average:
            self.recent[self.head] = r.key
            self.head = (self.head + 1) % RECENT
        self.tick()


@pytest.mark.parametrize(
    "made",
    [
        LHD(),
        LHD(candidates=1, reconfigure_every=7, bins=16),
        LHD(candidates=4, reconfigure_every=3, bins=33, age_shift=1, simulator_prior=True),
        LHD(candidates=3, reconfigure_every=5, bins=64),
    ],
)
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(made: LHD, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes", max_capacity=200, keys=24))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        sizes = [max(size, 1) for size in sequence.sizes] if unit == "bytes" else [1] * len(sequence.keys)
        slots = max(1, min(sequence.capacity // min(sizes), trace.unique))
        result = simulate(trace, made, sequence.capacity, unit=unit)
        assert result.hit.tolist() == naive_hits(NaiveLHD(sequence.capacity, made, slots), sequence.keys, sizes)

    check()


def test_equals_its_twin_over_many_reconfigurations() -> None:
    keys = zipf_mix(20_000, 400)
    sizes = 1 + keys * 7 % 40
    made = LHD(reconfigure_every=97, bins=32)
    trace = Trace.from_keys(keys, sizes=sizes)
    result = simulate(trace, made, 400, unit="bytes")
    twin = NaiveLHD(400, made, min(400, trace.unique))
    assert result.hit.tolist() == naive_hits(twin, keys.tolist(), sizes.tolist())
    assert twin.configured > LEARNING
    assert 0.2 < result.object_miss_ratio < 0.9


def test_learns_which_ages_are_not_worth_keeping() -> None:
    # Half of the accesses scan, half come back after 80: what is older than that will not.
    n = 200_000
    block = np.arange(n) // 80
    keys = np.where(np.arange(n) % 2 == 0, block // 2 * 1000 + np.arange(n) % 80, -np.arange(n) - 1)
    trace = Trace.from_keys(keys)
    learned = simulate(trace, LHD(reconfigure_every=1000, bins=1024), 70, warmup=0.5).hits
    assert learned > 1.2 * simulate(trace, "lru", 70, warmup=0.5).hits


def test_small_objects_stay_longer() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 400, 50_000)
    sizes = np.where(keys < 200, 1, 20)
    trace = Trace.from_keys(keys, sizes=sizes)
    hit = simulate(trace, LHD(reconfigure_every=2000), 800, unit="bytes").hit[25_000:]
    keys = keys[25_000:]
    assert hit[keys < 200].mean() > 0.9 > 0.3 > hit[keys >= 200].mean()


@pytest.mark.parametrize("params", [{"candidates": 0}, {"reconfigure_every": 0}, {"bins": 1}, {"age_shift": -2}])
def test_refuses_parameters_out_of_range(params: dict[str, int]) -> None:
    with pytest.raises(KvpredictError, match=f"'lhd'.*{next(iter(params))}"):
        policy("lhd", **params)
