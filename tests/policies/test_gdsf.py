"""GDSF against a twin that looks at every object."""

import numpy as np
import pytest
from hypothesis import given

from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveGDSF(Naive):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.inflation = 0.0
        self.frequency: dict[int, int] = {}
        self.rank: dict[int, tuple[float, int]] = {}
        self.clock = 0

    def touch(self, r: Request) -> None:
        self.clock += 1
        self.rank[r.key] = (self.inflation + self.frequency[r.key] * r.hint / r.size, self.clock)

    def hit(self, r: Request) -> None:
        self.frequency[r.key] += 1
        self.touch(r)

    def evict(self, r: Request) -> int:
        victim = min(self.rank, key=lambda key: self.rank[key])
        self.inflation = self.rank.pop(victim)[0]
        return victim

    def insert(self, r: Request) -> None:
        self.frequency[r.key] = 1
        self.touch(r)


@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        cost = [0.25 * (key % 7) for key in sequence.keys]
        trace = Trace.from_keys(sequence.keys, sizes=sequence.sizes, cost=np.array(cost))
        result = simulate(trace, "gdsf", sequence.capacity, unit=unit)
        sizes = sequence.sizes if unit == "bytes" else None
        assert result.hit.tolist() == naive_hits(NaiveGDSF(sequence.capacity), sequence.keys, sizes, hints=cost)

    check()


def test_prefers_small_and_dear_objects() -> None:
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 300, 20_000)
    small = keys < 100
    dear = (keys >= 100) & (keys < 200)
    sizes = np.where(small, 1, 10)
    cost = np.where(dear, 20.0, 1.0)
    hit = simulate(Trace.from_keys(keys, sizes=sizes, cost=cost), "gdsf", 800, unit="bytes").hit
    rest = ~small & ~dear
    assert hit[small].mean() > 2 * hit[rest].mean()
    assert hit[dear].mean() > 2 * hit[rest].mean()


def test_aging_lets_a_new_favourite_in() -> None:
    old = [1, 2, 3] * 40
    new = [10, 11, 12] * 80
    hit = simulate(Trace.from_keys(old + new), "gdsf", 3).hit
    assert hit[-30:].all(), "frequencies of long ago must not keep the cache for ever"
