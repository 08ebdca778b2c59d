"""W-TinyLFU against a twin with Python lists; the sketch, which has its own twin, is shared."""

import numpy as np
import pytest
from hypothesis import given

from kvpredict.core.errors import KvpredictError
from kvpredict.core.sketch import PERIOD, make_sketch, sketch_add, sketch_count
from kvpredict.policies import policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace
from tests.naive import Naive, Request, naive_hits
from tests.strategies import THOROUGH, Sequence, sequences


class NaiveWTinyLFU(Naive):
    """Segments are lists of keys, least recently used first."""

    def __init__(
        self,
        capacity: int,
        slots: int,
        window_ratio: float = 0.01,
        protected_ratio: float = 0.8,
        sample_factor: int = 10,
        doorkeeper: bool = True,
    ) -> None:
        super().__init__(capacity)
        self.window_limit = max(1, int(capacity * window_ratio))
        self.protected_limit = int((capacity - self.window_limit) * protected_ratio)
        self.factor = sample_factor
        self.window: list[int] = []
        self.probation: list[int] = []
        self.protected: list[int] = []
        self.size: dict[int, int] = {}
        self.sketch = make_sketch(slots, sample_factor * slots, doorkeeper)

    def units(self, keys: list[int]) -> int:
        return sum(self.size[key] for key in keys)

    def hit(self, r: Request) -> None:
        sketch_add(self.sketch, r.key)
        if r.key in self.window:
            self.window.remove(r.key)
            self.window.append(r.key)
            return
        (self.protected if r.key in self.protected else self.probation).remove(r.key)
        self.protected.append(r.key)
        while self.units(self.protected) > self.protected_limit:
            self.probation.append(self.protected.pop(0))

    def admit(self, r: Request) -> bool:
        sketch_add(self.sketch, r.key)
        return True

    def evict(self, r: Request) -> int:
        self.sketch.n[PERIOD] = self.factor * len(self.window + self.probation + self.protected)
        main = self.probation or self.protected
        if not main:
            return self.window.pop(0)
        if self.window and self.units(self.window) + r.size > self.window_limit:
            candidate = self.window.pop(0)
            if sketch_count(self.sketch, candidate) <= sketch_count(self.sketch, main[0]):
                return candidate
            victim = main.pop(0)
            self.probation.append(candidate)
            return victim
        return main.pop(0)

    def insert(self, r: Request) -> None:
        self.size[r.key] = r.size
        self.window.append(r.key)
        while self.units(self.window) > self.window_limit and len(self.window) > 1:
            self.probation.append(self.window.pop(0))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"window_ratio": 0.3, "protected_ratio": 0.5},
        {"window_ratio": 0.5, "sample_factor": 1, "doorkeeper": False},
        {"window_ratio": 1.0},
        {"window_ratio": 0.2, "protected_ratio": 0.0},
        {"window_ratio": 0.2, "protected_ratio": 1.0, "sample_factor": 3},
    ],
)
@pytest.mark.parametrize("unit", ["objects", "bytes"])
def test_equals_its_twin(params: dict[str, float], unit: str) -> None:
    @THOROUGH
    @given(sequences(sized=unit == "bytes", max_capacity=20))
    def check(sequence: Sequence) -> None:
        made = policy("wtinylfu", **params)
        trace = sequence.trace()
        sizes = [max(size, 1) for size in sequence.sizes] if unit == "bytes" else [1] * len(sequence.keys)
        slots = max(1, min(sequence.capacity // min(sizes), trace.unique))
        result = simulate(trace, made, sequence.capacity, unit=unit)
        twin = NaiveWTinyLFU(sequence.capacity, slots, **params)
        assert result.hit.tolist() == naive_hits(twin, sequence.keys, sizes)

    check()


def test_what_is_used_once_does_not_displace_what_is_used_often() -> None:
    hot = np.tile(np.arange(90), 8)
    trace = Trace.from_keys(np.concatenate([hot, np.arange(1000, 1400), np.arange(90)]))
    assert simulate(trace, "wtinylfu", 100).hit[-90:].sum() >= 89
    assert not simulate(trace, "lru", 100).hit[-90:].any()


def test_popularity_that_is_over_gives_way() -> None:
    before = np.random.default_rng(0).permutation(np.tile(np.arange(100), 30))
    after = np.random.default_rng(1).permutation(np.tile(np.arange(1000, 1100), 30))
    result = simulate(Trace.from_keys(np.concatenate([before, after])), "wtinylfu", 100)
    assert result.hit[-1000:].mean() > 0.9


@pytest.mark.parametrize("params", [{"window_ratio": 0.0}, {"protected_ratio": 1.1}, {"sample_factor": 0}])
def test_refuses_parameters_out_of_range(params: dict[str, float]) -> None:
    with pytest.raises(KvpredictError, match=f"'wtinylfu'.*{next(iter(params))}"):
        policy("wtinylfu", **params)
