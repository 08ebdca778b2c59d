"""BeladySize against a twin that draws the same sample."""

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
from tests.strategies import THOROUGH, Sequence, sequences, zipf_mix


class NaiveBeladySize(Naive):
    def __init__(self, capacity: int, samples: int) -> None:
        super().__init__(capacity)
        self.samples = samples
        self.draws = Draws(int(seed_random(0)[0]))
        self.alive: list[int] = []
        self.dead: list[int] = []
        self.size: dict[int, int] = {}
        self.next_use: dict[int, float] = {}
        self.clock = 0

    def hit(self, r: Request) -> None:
        self.clock += 1
        self.next_use[r.key] = r.hint
        if r.hint == np.inf and r.key in self.alive:
            swap_remove(self.alive, r.key)
            self.dead.append(r.key)

    def admit(self, r: Request) -> bool:
        self.clock += 1
        return r.hint != np.inf

    def evict(self, r: Request) -> int:
        if self.dead:
            return self.dead.pop()
        drawn = [self.alive[self.draws.below(len(self.alive))] for _ in range(self.samples)]
        victim = max(drawn, key=lambda key: self.size[key] * (self.next_use[key] - self.clock))
        swap_remove(self.alive, victim)
        return victim

    def insert(self, r: Request) -> None:
        self.size[r.key] = r.size
        self.next_use[r.key] = r.hint
        self.alive.append(r.key)


@pytest.mark.parametrize("samples", [1, 3, 128])
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(samples: int, unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes"))
    def check(sequence: Sequence) -> None:
        trace = sequence.trace()
        result = simulate(trace, policy("beladysize", samples=samples), sequence.capacity, unit=unit)
        twin = NaiveBeladySize(sequence.capacity, samples)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sequence.sizes, hints=trace.next_use.tolist())

    check()


def test_with_one_size_it_comes_close_to_the_optimum_and_with_sizes_below_belady() -> None:
    keys = zipf_mix(6000, 400, seed=1)
    sizes = (1 + (keys * 2654435761 % 97) ** 2 // 50).astype(np.int64)
    trace = Trace.from_keys(keys, sizes=sizes)
    best = simulate(trace, policy("belady", bypass=True), 40).misses
    assert best <= simulate(trace, "beladysize", 40).misses <= best * 1.02
    capacity = trace.capacity(0.1, "bytes")
    sized = simulate(trace, "beladysize", capacity, unit="bytes").misses
    assert sized < simulate(trace, "belady", capacity, unit="bytes").misses


def test_refuses_samples_out_of_range() -> None:
    for samples in (0, 5000):
        with pytest.raises(KvpredictError, match=r"beladysize.*samples"):
            policy("beladysize", samples=samples)
