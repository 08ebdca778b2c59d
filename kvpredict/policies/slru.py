"""SLRU: LRU in segments; what is hit climbs one segment, what overflows a segment falls one.

New objects enter the lowest segment and are evicted from there, so an object asked for once leaves without disturbing
those that were hit. Each segment is an LRU list with an equal share of the capacity.

Karedla, Love and Wherry, "Caching Strategies to Improve Disk System Performance", IEEE Computer 27(3), 1994 (two
segments); Huang et al., "An Analysis of Facebook Photo Caching", SOSP 2013, section 6.1 (four, the default).
The lowest segment takes whatever the others leave free, so that no space lies idle while the cache fills. libcachesim
puts newcomers into higher segments meanwhile, where they may stay for ever without a hit, and refuses objects larger
than one segment; in both papers only a hit leads upwards, and neither refuses anything.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.validate import list_nodes

__all__ = ["SLRU"]


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + segments)], newest use in front
    level: np.ndarray  # uint8 [slots], segment of the object
    size: np.ndarray  # int64 [slots]
    units: np.ndarray  # int64 [segments], units in each segment
    limit: np.ndarray  # int64 [1], units that a segment above the lowest may hold


@dataclass(frozen=True)
class SLRU(Policy):
    """Segmented LRU.

    Parameters
    ----------
    segments : int, default 4
        Number of segments, 1 (plain LRU) to 16.
    """

    name = "slru"

    segments: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.segments <= 16, self, f"segments must be 1 to 16, got {self.segments}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            links=make_links(slots, self.segments),
            level=np.zeros(slots, np.uint8),
            size=np.zeros(slots, np.int64),
            units=np.zeros(self.segments, np.int64),
            limit=np.array([capacity // self.segments], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        slots = s.level.size
        level = np.int64(s.level[slot])
        unlink(s.links, slot)
        if level + 1 < s.units.size:
            s.units[level] -= s.size[slot]
            level += 1
            s.level[slot] = level
            s.units[level] += s.size[slot]
        push_front(s.links, slots + level, slot)
        while level > 0 and s.units[level] > s.limit[0]:
            while s.units[level] > s.limit[0]:
                fallen = back(s.links, slots + level)
                unlink(s.links, fallen)
                s.units[level] -= s.size[fallen]
                s.level[fallen] = level - 1
                s.units[level - 1] += s.size[fallen]
                push_front(s.links, slots + level - 1, fallen)
            level -= 1

    @staticmethod
    @lean_kernel
    def evict(s, e):
        slots = s.level.size
        level = 0
        victim = back(s.links, slots)
        while victim == slots + level:
            level += 1
            victim = back(s.links, slots + level)
        unlink(s.links, victim)
        s.units[level] -= s.size[victim]
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.level[slot] = 0
        s.size[slot] = e.size
        s.units[0] += e.size
        push_front(s.links, s.level.size, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)
        s.units[s.level[slot]] -= s.size[slot]

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.level.size
        held = []
        for level in range(state.units.size):
            members = list_nodes(state.links, slots + level)
            assert (state.level[members] == level).all()
            assert state.size[members].sum() == state.units[level]
            assert level == 0 or state.units[level] <= state.limit[0]
            held += members
        assert sorted(held) == resident.tolist()
