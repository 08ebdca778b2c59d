"""Segmented LRU: blocks used once are evicted before those used again since they were stored.

The second kind, the protected segment, may fill ``protected`` of the cache; what exceeds it goes back, oldest leaf
first. Karedla, Love and Wherry, "Caching Strategies to Improve Disk System Performance", IEEE Computer 1994. Here only
unused leaves move between segments by eviction, so the protected one may be larger for a while. A host tier has no
segments.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import heap_drop, heap_lowest, heap_push
from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policies.lru import LRU
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits, require
from kvpredict.llm.prefix.pool import heap_of, standing

__all__ = ["SLRU"]


class State(NamedTuple):
    kept: np.ndarray  # uint8 [n], 0 not on the device, 1 stored and not used yet, 2 used once, 3 protected
    protected: np.ndarray  # int64 [1], nodes in the protected segment of the device
    share: np.ndarray  # float64 [1]


@dataclass(frozen=True)
class SLRU(PrefixPolicy):
    """Segmented LRU.

    Parameters
    ----------
    protected : float, default 0.8
        Share of the cache.
    """

    name = "slru"
    traits = Traits(heaps=2)
    rank = staticmethod(LRU.rank)  # within each segment

    protected: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.protected < 1, self, f"protected must be between 0 and 1, got {self.protected}")

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        return State(np.zeros(nodes, np.uint8), np.zeros(1, np.int64), np.array([self.protected]))

    @staticmethod
    @lean_kernel
    def side(s, node):
        return 1 if s.kept[node] == 3 else 0

    @staticmethod
    @lean_kernel
    def stored(s, p, node):
        s.kept[node] = 1

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        for j in range(r.start[i], r.stop[i]):
            node = r.node[j]
            if s.kept[node] == 1:
                s.kept[node] = 2
            elif s.kept[node] == 2:
                s.kept[node] = 3
                s.protected[0] += 1

    @staticmethod
    @lean_kernel
    def evicted(s, p, node, now):
        if s.kept[node] == 3:
            s.protected[0] -= 1
        s.kept[node] = 0

    @staticmethod
    @lean_kernel
    def choose(s, p, c, now):
        hot = heap_of(p, 2 * c + 1)
        cold = heap_of(p, 2 * c)
        while hot.held[0] > 0 and s.protected[0] > s.share[0] * p.capacity[0]:
            node = heap_lowest(hot)
            heap_drop(hot, node)
            s.kept[node] = 2
            s.protected[0] -= 1
            heap_push(cold, node, float(p.tally[0]) + standing(p, node, now), p.order[node])
        return heap_lowest(cold) if cold.held[0] > 0 else heap_lowest(hot)
