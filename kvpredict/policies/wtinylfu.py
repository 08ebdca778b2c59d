"""W-TinyLFU: let a newcomer into the main cache only if it is used more often than what it would displace.

A small LRU window takes every newcomer, so that a burst is served. What leaves the window is the candidate for the main
cache, a segmented LRU; it gets in only if a sketch of recent frequencies counts more uses of it than of the main
cache's own next victim. The sketch remembers keys that are not cached and forgets by halving.

Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM TOS 2017, sections 3 and 4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, move_to_front, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.sketch import PERIOD, Sketch, make_sketch, sketch_add, sketch_count
from kvpredict.core.validate import list_nodes

__all__ = ["WTinyLFU"]

WINDOW, PROBATION, PROTECTED = 0, 1, 2  # values of State.segment, by the sentinels' offset
KEY, SIZE = 0, 1  # places in a slot's row of State.rows
# Places in State.n: units held by each segment; units that window and protected segment may hold; objects held; the
# additions of a period for each of them.
UNITS, WINDOW_LIMIT, PROTECTED_LIMIT, COUNT, SAMPLE = 0, 3, 4, 5, 6


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 3)], three lists, the last use in front
    rows: np.ndarray  # int64 [2 * slots], key and size
    segment: np.ndarray  # uint8 [slots]
    n: np.ndarray  # int64 [7], see above
    sketch: Sketch


@lean_kernel
def _move(s, slot, segment):
    """Move ``slot`` to the front of ``segment``."""
    size = s.rows[2 * slot + SIZE]
    s.n[UNITS + s.segment[slot]] -= size
    s.n[UNITS + segment] += size
    s.segment[slot] = segment
    move_to_front(s.links, s.segment.size + segment, slot)


@lean_kernel
def _leave(s, slot):
    """Take ``slot`` out of its segment."""
    s.n[UNITS + s.segment[slot]] -= s.rows[2 * slot + SIZE]
    s.n[COUNT] -= 1
    unlink(s.links, slot)


@dataclass(frozen=True)
class WTinyLFU(Policy):
    """Windowed TinyLFU over a segmented LRU.

    Parameters
    ----------
    window_ratio : float, default 0.01
        Share of the capacity, in units, given to the window; at least one unit.
    protected_ratio : float, default 0.8
        Share of the main cache for objects hit there.
    sample_factor : int, default 10
        The sketch is halved after this many accesses for each object held (the paper's W / C).
    doorkeeper : bool, default True
        Keep what was used once in a period out of the sketch's counters.

    Notes
    -----
    Misses differ from libCacheSim's by much more than noise. There a hit in the window is not counted, a candidate is
    counted once more whenever it is judged, the sketch is halved every 32 x capacity counts and its counters have no
    cap; and an object larger than the window, 1 % of the cache, is refused, so that a cache of fewer than 100 objects
    holds none. In the paper (section 3) every access counts once, counters are capped at W / C, and W is 8 to 10 times
    the capacity; its authors' own implementation, Caffeine, does as is done here.
    """

    name = "wtinylfu"

    window_ratio: float = 0.01
    protected_ratio: float = 0.8
    sample_factor: int = 10
    doorkeeper: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.window_ratio <= 1, self, f"window_ratio must be in (0, 1], got {self.window_ratio}")
        require(0 <= self.protected_ratio <= 1, self, f"protected_ratio must be in [0, 1], got {self.protected_ratio}")
        require(1 <= self.sample_factor <= 1000, self, f"sample_factor must be 1 to 1000, got {self.sample_factor}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        window = max(1, int(capacity * self.window_ratio))
        protected = int((capacity - window) * self.protected_ratio)
        return State(
            links=make_links(slots, 3),
            rows=np.zeros(2 * slots, np.int64),
            segment=np.zeros(slots, np.uint8),
            n=np.array([0, 0, 0, window, protected, 0, self.sample_factor], np.int64),
            sketch=make_sketch(slots, self.sample_factor * slots, self.doorkeeper),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        sketch_add(s.sketch, e.key)
        segment = np.int64(s.segment[slot])
        if segment != PROBATION:
            move_to_front(s.links, s.segment.size + segment, slot)
            return
        _move(s, slot, PROTECTED)
        while s.n[UNITS + PROTECTED] > s.n[PROTECTED_LIMIT]:
            _move(s, back(s.links, s.segment.size + PROTECTED), PROBATION)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        sketch_add(s.sketch, e.key)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        slots = s.segment.size
        n = s.n
        # Objects of many sizes: how many the cache holds shows only when it is full.
        s.sketch.n[PERIOD] = n[SAMPLE] * n[COUNT]
        candidate = back(s.links, slots + WINDOW)
        victim = back(s.links, slots + PROBATION)
        if victim >= slots:
            victim = back(s.links, slots + PROTECTED)
        if victim >= slots:
            victim = candidate
        elif candidate < slots and n[UNITS + WINDOW] + e.size > n[WINDOW_LIMIT]:
            uses = sketch_count(s.sketch, s.rows[2 * candidate + KEY])
            if uses > sketch_count(s.sketch, s.rows[2 * victim + KEY]):
                _move(s, candidate, PROBATION)
            else:
                victim = candidate
        _leave(s, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        n = s.n
        window = s.segment.size + WINDOW
        s.rows[2 * slot + KEY] = e.key
        s.rows[2 * slot + SIZE] = e.size
        s.segment[slot] = WINDOW
        push_front(s.links, window, slot)
        n[UNITS + WINDOW] += e.size
        n[COUNT] += 1
        # The main cache has room: nobody has to be judged.
        while n[UNITS + WINDOW] > n[WINDOW_LIMIT] and back(s.links, window) != slot:
            _move(s, back(s.links, window), PROBATION)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        _leave(s, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots, n = state.segment.size, state.n
        size = state.rows[SIZE::2]
        seen = []
        for which in (WINDOW, PROBATION, PROTECTED):
            nodes = list_nodes(state.links, slots + which)
            assert (state.segment[nodes] == which).all()
            assert size[nodes].sum() == n[UNITS + which]
            assert which != WINDOW or len(nodes) <= 1 or n[UNITS + WINDOW] <= n[WINDOW_LIMIT]
            seen += nodes
        assert sorted(seen) == resident.tolist()
        assert len(seen) == n[COUNT]
        assert n[UNITS + PROTECTED] <= n[PROTECTED_LIMIT]
        assert 0 <= state.sketch.n[0] < max(state.sketch.n[PERIOD], self.sample_factor * slots)
        assert (state.sketch.counters <= 15).all()
