"""Hypothesis strategies for access sequences, and seeded traces for tests that need longer ones.

Sequences are built from segments (scans, loops, repeats, random picks), because eviction policies differ on patterns
that independent draws rarely produce.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kvpredict.trace import Trace

__all__ = ["THOROUGH", "Sequence", "operations", "sequences", "wide_keys", "zipf_mix"]

# Compilation happens inside the first example, so a deadline would only measure Numba. Derandomised: the suite gives
# the same answer twice.
THOROUGH = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


class Sequence(NamedTuple):
    """Requests against a cache of ``capacity`` units; key ``k`` always has size ``sizes[i]`` where ``keys[i] == k``."""

    keys: list[int]
    sizes: list[int]
    capacity: int

    def trace(self) -> Trace:
        return Trace.from_keys(np.array(self.keys, np.int64), sizes=np.array(self.sizes, np.int64))


def _segments(keys: int) -> st.SearchStrategy[list[int]]:
    key = st.integers(0, keys - 1)
    scan = st.builds(lambda a, n: [(a + i) % keys for i in range(n)], key, st.integers(2, keys))
    loop = st.builds(lambda a, n, times: [(a + i) % keys for i in range(n)] * times, key, st.integers(2, 9), st.just(3))
    repeat = st.builds(lambda k, n: [k] * n, key, st.integers(2, 4))
    picks = st.lists(key, min_size=1, max_size=12)
    return st.one_of(picks, scan, loop, repeat)


@st.composite
def sequences(draw: st.DrawFn, *, sized: bool = False, keys: int = 16, max_capacity: int = 8) -> Sequence:
    """Draw a short sequence over at most ``keys`` keys; with ``sized`` each key has a size of 0 to 9 units."""
    segments = draw(st.lists(_segments(keys), min_size=1, max_size=10))
    accessed = [key for segment in segments for key in segment]
    if not sized:
        return Sequence(accessed, [1] * len(accessed), draw(st.integers(1, max_capacity)))
    size_of = draw(st.lists(st.integers(0, 9), min_size=keys, max_size=keys))
    return Sequence(accessed, [size_of[key] for key in accessed], draw(st.integers(1, 4 * max_capacity)))


@st.composite
def operations(draw: st.DrawFn, *, keys: int = 12) -> list[tuple[str, int, int]]:
    """Draw operations ``("get" | "delete", key, size)``; the size of a key may change from one to the next."""
    made = []
    for segment in draw(st.lists(_segments(keys), min_size=1, max_size=8)):
        for key in segment:
            made.append(("get", key, draw(st.integers(1, 6)) if key % 3 == 0 else 1 + key % 4))
        for key in draw(st.lists(st.integers(0, keys - 1), max_size=3)):
            made.append(("delete", key, 0))
    return made


def wide_keys(ids: np.ndarray, seed: int = 0) -> np.ndarray:
    """Replace small numbers by keys of any bit pattern: negative ones, and ones beyond 2**32."""
    rng = np.random.default_rng(seed)
    names = rng.integers(-(2**63), 2**63 - 1, int(ids.max()) + 1, dtype=np.int64)
    edges = np.array([-(2**63), 2**63 - 1, -1, 0, 2**32, -(2**32), 2**32 + 1, 2**31], np.int64)
    names[: min(edges.size, names.size)] = edges[: names.size]
    return names[ids]


def zipf_mix(n: int, keys: int, seed: int = 0) -> np.ndarray:
    """Return ``n`` small key numbers: Zipf draws whose ranks drift, with scans and loops in between, int64."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, keys + 1) ** 0.9
    ranks = rng.choice(keys, size=n, p=weights / weights.sum()).astype(np.int64)
    made = (ranks + (np.arange(n) // max(n // 4, 1)) * (keys // 10)) % keys
    step = max(n // 8, 1)
    for block, start in enumerate(range(step // 2, n, step)):
        length = min(step // 4, n - start)
        if block % 2:  # a scan over keys seen nowhere else
            made[start : start + length] = keys + block * step + np.arange(length)
        else:  # a loop over a fifth of the keys
            made[start : start + length] = np.arange(length) % max(keys // 5, 1)
    return made
