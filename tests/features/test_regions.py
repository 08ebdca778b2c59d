"""Regions: rows follow their definitions, and tell of neighbours only where keys have any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.table import hash_key
from kvpredict.features.regions import Regions, make_regions, visit, write_regions
from kvpredict.features.schema import REGION_FEATURES, REGION_SIZES

WIDTH = len(REGION_SIZES) * len(REGION_FEATURES)
UNIT = 50.0


class NaiveRegions:
    """One dict a level, from the number of a run to (times of access, share of known keys)."""

    def __init__(self, places: int) -> None:
        self.places, self.keys, self.step = places, set[int](), 2**40
        self.held: list[dict[int, tuple[list[int], float]]] = [{} for _ in REGION_SIZES]

    def place(self, number: int) -> int:
        return int(hash_key(np.int64(number))) % self.places

    def displace(self, size: int, number: int) -> None:
        """Forget the run that has this one's place, and with one of 64 keys its runs of 8."""
        for theirs in [n for n in self.held[REGION_SIZES.index(size)] if self.place(n) == self.place(number)]:
            if theirs != number:
                del self.held[REGION_SIZES.index(size)][theirs]
                if size == 64:
                    self.held[0] = {part: known for part, known in self.held[0].items() if part // 8 != theirs}

    def visit(self, key: int, known: float, now: int) -> None:
        self.keys.add(key)
        differing = 0
        for other in self.keys:
            differing |= other ^ key
        step = (differing & -differing) or 2**40
        if step < self.step:
            self.step = step
            self.held = [{} for _ in REGION_SIZES]
        for size in (64, 1024):
            self.displace(size, key // (size * self.step))
        for size, held in zip(REGION_SIZES, self.held, strict=True):
            times, share = held.get(key // (size * self.step), ([], known))
            held[key // (size * self.step)] = [*times, now], share + 0.1 * (known - share)

    def row(self, key: int, last: int, now: int) -> list[float]:
        row = []
        for size, held in zip(REGION_SIZES, self.held, strict=True):
            if key // (size * self.step) not in held:
                row += [(now - last) / UNIT, 0.0, -1.0, 0.0]
            else:
                times, share = held[key // (size * self.step)]
                rate = sum(0.5 ** ((now - t) / UNIT) for t in times)
                row += [(now - times[-1]) / UNIT, max(times[-1] - last, 0) / UNIT, share, rate]
        return row


def written(state: Regions, objects: list[tuple[int, int]], now: int, out: np.ndarray) -> None:
    """Write the rows of objects given by their keys and last accesses."""
    keys, when = np.array(objects, np.int64).T
    fact = np.zeros((len(keys), 8), np.int64)
    fact[:, 0], fact[:, 1] = keys, when
    write_regions(state, fact.reshape(-1), np.arange(len(keys)), len(keys), now, 1 / UNIT, out, 0)


@settings(deadline=None)
@given(
    st.lists(st.integers(-60, 60) | st.integers(-9000, 9000), min_size=1, max_size=150),
    st.sampled_from([1, 2, 512]),
    st.sampled_from([2, 64]),
    st.sampled_from([0, 2**31 - 9, 2**40]),
)
def test_rows_follow_their_definitions(numbers: list[int], step: int, slots: int, before: int) -> None:
    keys = [step * number for number in numbers]
    state, naive = make_regions(slots), NaiveRegions(max(8, slots))
    last: dict[int, int] = {}
    state.bits[1] = keys[0]  # some key, which access number 1 puts there
    for now, key in enumerate(keys, before + 1):
        known = 1.0 if key in last else 0.0
        visit(state, np.int64(key), known, now, UNIT)
        naive.visit(key, known, now)
        last[key] = now
    out = np.zeros((1, WIDTH), np.float32)
    for key, then in last.items():
        now = before + len(keys) + 3
        written(state, [(key, then)], now, out)
        assert out[0].tolist() == pytest.approx(naive.row(key, then, now), rel=1e-4, abs=1e-6)


def test_keys_without_order_have_regions_of_their_own() -> None:
    state = make_regions(1024)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, 500)
    for now, key in enumerate(keys, 1):
        visit(state, key, 0.0, now, UNIT)
    out = np.zeros((1, WIDTH), np.float32)
    for now, key in enumerate(keys, 1):
        written(state, [(key, now)], 501, out)
        after = out[0, 1 :: len(REGION_FEATURES)]
        assert (after == 0).all()  # nobody else was there since


def test_a_run_read_again_tells_of_what_comes_next() -> None:
    state = make_regions(1024)
    for now, key in enumerate([*range(64), *range(1000, 1500), *range(32)], 1):
        visit(state, np.int64(key), 0.0, now, UNIT)
    out = np.zeros((2, WIDTH), np.float32)
    written(state, [(40, 41), (1200, 265)], 597, out)  # the first one's run of 64 is being read
    recency = 4 * 1  # of the run of 64 keys
    assert out[0, recency] < 0.1 < 5 < out[1, recency]
    assert out[0, recency + 1] > 10  # long after the key's own access
