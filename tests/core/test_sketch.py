"""The sketch against a twin with dicts and sets, and against true counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.sketch import ADDITIONS, make_sketch, sketch_add, sketch_count
from kvpredict.core.table import hash_key
from tests.strategies import THOROUGH, wide_keys


class NaiveSketch:
    """Counters in a dict by (block, row, column), the doorkeeper's bits in a set of (word, bit)."""

    def __init__(self, n: int, period: int, doorkeeper: bool) -> None:
        def power(of: float) -> int:
            m = 1
            while m < of:
                m *= 2
            return m

        self.blocks, self.words = max(1, power(n) // 4), max(1, power(period) // 4)
        self.period, self.doorkeeper = period, doorkeeper
        self.counters: Counter[tuple[int, int, int]] = Counter()
        self.door: set[tuple[int, int]] = set()
        self.additions = 0

    def places(self, key: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
        h = int(hash_key(key))
        g = h * 0x2C1B3C6D % 2**32
        cells = [(h % self.blocks, row, g // 2 ** (16 + 4 * row) % 16) for row in range(4)]
        return cells, [(g % self.words, h // 2**shift % 32) for shift in (27, 22, 17)]

    def count(self, key: int) -> int:
        cells, bits = self.places(key)
        return min(self.counters[cell] for cell in cells) + (self.doorkeeper and self.door.issuperset(bits))

    def add(self, key: int) -> None:
        cells, bits = self.places(key)
        self.additions += 1
        if self.doorkeeper and not self.door.issuperset(bits):
            self.door.update(bits)
        else:
            for cell in cells:
                self.counters[cell] = min(self.counters[cell] + 1, 15)
        if self.additions >= self.period:
            self.additions //= 2
            self.counters = Counter({cell: count // 2 for cell, count in self.counters.items()})
            self.door.clear()


@pytest.mark.parametrize("doorkeeper", [True, False])
@pytest.mark.parametrize(("n", "period"), [(1, 1), (3, 7), (5, 50), (40, 400)])
def test_equals_its_twin(n: int, period: int, doorkeeper: bool) -> None:
    @THOROUGH
    @given(st.lists(st.integers(0, 3 * n), max_size=200))
    def check(picks: list[int]) -> None:
        keys = wide_keys(np.arange(3 * n + 1)).tolist()
        sketch, twin = make_sketch(n, period, doorkeeper), NaiveSketch(n, period, doorkeeper)
        for pick in picks:
            sketch_add(sketch, keys[pick])
            twin.add(keys[pick])
            assert sketch_count(sketch, keys[pick]) == twin.count(keys[pick])
        assert [int(sketch_count(sketch, key)) for key in keys] == [twin.count(key) for key in keys]
        assert sketch.n[ADDITIONS] == twin.additions

    check()


@pytest.mark.parametrize("doorkeeper", [True, False])
def test_estimates_are_never_low_and_seldom_high(doorkeeper: bool) -> None:
    rng = np.random.default_rng(0)
    keys = rng.zipf(1.3, 8000) % 5000
    sketch = make_sketch(1000, 10_000, doorkeeper)
    for key in keys:
        sketch_add(sketch, key)
    true = Counter(keys.tolist())
    excess = [int(sketch_count(sketch, key)) - min(count, 15 + doorkeeper) for key, count in true.items()]
    assert min(excess) >= 0
    assert np.mean(np.array(excess) > 0) < 0.1


def test_old_counts_fade_by_halves() -> None:
    sketch = make_sketch(64, 64)
    for _ in range(13):
        sketch_add(sketch, 7)
    assert sketch_count(sketch, 7) == 13
    for key in range(1000, 1000 + 51):
        sketch_add(sketch, key)
    assert sketch_count(sketch, 7) == 6  # 12 in the counters, halved; the doorkeeper forgot it
    assert sketch.n[ADDITIONS] == 32


def test_counters_do_not_overflow() -> None:
    sketch = make_sketch(4, 10_000, doorkeeper=False)
    for _ in range(1000):
        sketch_add(sketch, -1)
    assert sketch_count(sketch, -1) == 15
    assert sketch.counters.max() == 15
