"""The history against a slow twin that keeps every access of every key."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.policy import Event
from kvpredict.features import history as h
from kvpredict.features.schema import BASE_FEATURES, MISSING

SLOTS = 4


class NaiveHistory:
    """Feature rows from the full list of what happened, by their definitions."""

    def __init__(self) -> None:
        self.now = 0
        self.held: set[int] = set()
        self.accesses: dict[int, list[tuple[int, float]]] = {}  # (time, residence time when the access was noted)
        self.inserted: dict[int, int] = {}
        self.evicted: dict[int, int] = {}
        self.visits: dict[int, int] = {}
        self.returns: dict[int, int] = {}
        self.absence: dict[int, int] = {}
        self.spacing, self.previous = 2.0, 0

    def unit(self) -> float:
        return max(self.spacing, 1.0) * (len(self.held) if self.evicted else SLOTS)

    def access(self, key: int) -> bool:
        self.now += 1
        if key not in self.held:
            self.spacing += 1.0 / 32.0 * (self.now - self.previous - self.spacing)
            self.previous = self.now
        self.accesses.setdefault(key, []).append((self.now, self.unit()))
        if key in self.held:
            self.visits[key] += 1
            return True
        return False

    def insert(self, key: int) -> None:
        self.held.add(key)
        self.inserted[key], self.visits[key] = self.now, 0
        if key in self.evicted:
            self.returns[key] = self.returns.get(key, 0) + 1
            self.absence[key] = self.now - self.evicted[key]

    def evict(self, key: int) -> None:
        self.held.discard(key)
        self.evicted[key] = self.now

    def row(self, key: int) -> dict[str, float]:
        unit = self.unit()
        times = [t for t, _ in self.accesses[key]]
        gaps = [b - a for a, b in itertools.pairwise(times)][::-1]
        idle = self.now - times[-1]
        row = {"recency": idle / unit}
        for i in range(4):
            row[f"gap_{i + 1}"] = gaps[i] / unit if i < len(gaps) else MISSING
        for name, life in (("1_16", 1 / 16), ("1_4", 1 / 4), ("1", 1.0), ("4", 4.0), ("16", 16.0)):
            value = 0.0
            last = None
            for time, unit_then in self.accesses[key]:
                value = 1.0 + (value * 0.5 ** ((time - last) / unit_then / life) if last is not None else 0.0)
                last = time
            row[f"rate_{name}"] = value * 0.5 ** (idle / unit / life)
        row["count"] = min(len(times), 64)
        row["age"] = (self.now - times[0]) / unit
        row["mean_gap"] = row["age"] / len(times)
        row["visits"] = min(self.visits[key], 16)
        row["residence"] = (self.now - self.inserted[key]) / unit
        row["gap_ratio"] = gaps[0] / (idle + 1) if gaps else MISSING
        row["returns"] = self.returns.get(key, 0)
        row["absence"] = self.absence[key] / unit if key in self.absence else MISSING
        return row


@given(st.lists(st.integers(0, 9), min_size=1, max_size=120))
@settings(max_examples=40, deadline=None)
def test_rows_follow_their_definitions(keys: list[int]) -> None:
    naive, state = NaiveHistory(), h.make_history(SLOTS, 10.0)  # room for every key
    entry: dict[int, int] = {}
    queue: list[int] = []
    for key in keys:
        event = Event(0.0, np.int64(key), np.int64(1), 1.0, ())
        if naive.access(key):
            h.note_hit(state, entry[key], event, SLOTS)
            continue
        noted = h.note_miss(state, event, SLOTS)
        if len(queue) == SLOTS:
            victim = queue.pop(0)
            naive.evict(victim)
            h.note_eviction(state, entry[victim], True)
        naive.insert(key)
        h.note_insertion(state, noted, event)
        entry[key] = noted
        queue.append(key)
    out = np.zeros((len(queue), len(BASE_FEATURES)), np.float32)
    h.write(state, np.array([entry[k] for k in queue], np.int32), len(queue), SLOTS, out)
    for key, row in zip(queue, out, strict=True):
        for name, wanted in naive.row(key).items():
            got = row[BASE_FEATURES.index(name)]
            assert math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-6), (key, name, got, wanted)


def test_memory_is_bounded_and_the_oldest_ghost_goes_first() -> None:
    state = h.make_history(2, 2.0)  # 6 entries
    for key in range(100):
        entry = h.note_miss(state, Event(0.0, np.int64(key), np.int64(1), 1.0, ()), 2)
        h.note_eviction(state, entry, False)
    assert state.clock[h.FREE] == 0
    known = sorted(state.fact[8 * ((state.cells[state.cells != 0] & 0xFFFFFFFF) - 1)].tolist())
    assert known == [94, 95, 96, 97, 98, 99]


def test_levels_rise_and_fall() -> None:
    state = h.make_history(2, 8.0)
    seen = Event(0.0, np.int64(1), np.int64(7), 1.0, ())
    entry = h.note_miss(state, seen, 2)
    h.note_insertion(state, entry, seen)
    for _ in range(2000):
        h.note_hit(state, entry, seen, 2)
    out = np.zeros((1, len(BASE_FEATURES)), np.float32)
    h.write(state, np.array([entry], np.int32), 1, 2, out)
    row = dict(zip(BASE_FEATURES, out[0].tolist(), strict=True))
    assert row["novelty_now"] < 0.01
    assert row["misses_now"] < 0.01
    assert row["count"] == 64
    assert row["visits"] == 16
    assert row["size"] > 1


def test_half_lives() -> None:
    x = np.linspace(0, 62.9, 5001)
    assert np.allclose([half_lives(v) for v in x], 0.5**x, rtol=1e-8)
    assert half_lives(1e9) == 0.0
