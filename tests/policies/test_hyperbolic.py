"""Hyperbolic against a twin that draws the same sample."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.core.random import seed_random
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.policies.draws import Draws, swap_remove
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveHyperbolic(Naive):
    def __init__(self, capacity: int, samples: int, size_aware: bool) -> None:
        super().__init__(capacity)
        self.samples, self.size_aware = samples, size_aware
        self.draws = Draws(int(seed_random(0)[0]))
        self.held: list[int] = []
        self.worth: dict[int, Fraction] = {}
        self.since: dict[int, int] = {}
        self.clock = 0

    def gain(self, r: Request) -> Fraction:
        # Costs and sizes in these tests are such that no rounding can change an order.
        return Fraction(r.hint) / r.size if self.size_aware else Fraction(r.hint)

    def hit(self, r: Request) -> None:
        self.clock += 1
        self.worth[r.key] += self.gain(r)

    def admit(self, r: Request) -> bool:
        self.clock += 1
        return True

    def evict(self, r: Request) -> int:
        drawn = [self.held[self.draws.below(len(self.held))] for _ in range(self.samples)]
        victim = min(drawn, key=lambda key: self.worth[key] / (self.clock - self.since[key]))
        swap_remove(self.held, victim)
        return victim

    def insert(self, r: Request) -> None:
        self.worth[r.key] = self.gain(r)
        self.since[r.key] = self.clock
        self.held.append(r.key)


@pytest.mark.parametrize(("samples", "size_aware"), [(1, False), (3, False), (64, False), (64, True)])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(samples: int, size_aware: bool, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        sizes = [2 ** (size % 5) for size in sequence.sizes]
        cost = [1.0 + key % 3 for key in sequence.keys]
        trace = Trace.from_keys(sequence.keys, sizes=sizes, cost=np.array(cost))
        made = policy("hyperbolic", samples=samples, size_aware=size_aware)
        result = simulate(trace, made, sequence.capacity, unit=unit)
        seen = sizes if unit == "bytes" else [1] * len(sizes)
        twin = NaiveHyperbolic(sequence.capacity, samples, size_aware)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, seen, hints=cost)

    check()


def test_keeps_the_dearer_of_equally_popular_objects() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 200, 20_000)
    trace = Trace.from_keys(keys, cost=np.where(keys < 50, 10.0, 1.0))
    hit = simulate(trace, "hyperbolic", 60).hit[5000:]
    dear = keys[5000:] < 50
    assert hit[dear].mean() > 0.8 > 0.3 > hit[~dear].mean()


def test_refuses_samples_out_of_range_and_declares_sizes() -> None:
    with pytest.raises(KvpredictError, match=r"hyperbolic.*samples"):
        policy("hyperbolic", samples=0)
    assert policy("hyperbolic", size_aware=True).traits.sized
    assert not policy("hyperbolic").traits.sized
