"""ARC: blocks used once and blocks used again share the cache, in proportions that hits on what was evicted shift.

A miss on a block lately evicted from one part asks for more of that part. Ghost lists are kept as windows: a block
evicted from a part is remembered for as many further evictions from it as the part lacks to the cache's size. A host
tier is no part of this: it evicts by LRU, and a block that comes back from it is one lately evicted.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. Only unused leaves go.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import heap_lowest
from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policies.lru import LRU
from kvpredict.llm.prefix.policies.slru import SLRU
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits
from kvpredict.llm.prefix.pool import heap_of

__all__ = ["ARC"]


class State(NamedTuple):
    kept: np.ndarray  # uint8 [n], 0 not on the device, 1 stored and not used yet, 2 used once (T1), 3 used again (T2)
    gone: np.ndarray  # int64 [2, n], a node's number in the order of evictions from T1 and from T2, -1: none
    tally: np.ndarray  # int64 [2], evictions from each
    held: np.ndarray  # int64 [2], nodes of the device in each
    target: np.ndarray  # float64 [1], of T1


@dataclass(frozen=True)
class ARC(PrefixPolicy):
    """Adaptive replacement."""

    name = "arc"
    traits = Traits(heaps=2)
    rank = staticmethod(LRU.rank)  # within each part
    side = staticmethod(SLRU.side)

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        return State(
            np.zeros(nodes, np.uint8),
            np.full((2, nodes), -1, np.int64),
            np.zeros(2, np.int64),
            np.zeros(2, np.int64),
            np.zeros(1),
        )

    @staticmethod
    @lean_kernel
    def stored(s, p, node):
        again = -1
        for k in range(2):
            window = p.capacity[0] - s.held[k]
            if s.gone[k, node] >= 0 and s.tally[k] - s.gone[k, node] <= window:
                again = k
            s.gone[k, node] = -1
        if again == 0:
            s.target[0] = min(float(p.capacity[0]), s.target[0] + 1.0)
        elif again == 1:
            s.target[0] = max(0.0, s.target[0] - 1.0)
        s.kept[node] = 3 if again >= 0 else 1
        s.held[1 if again >= 0 else 0] += 1

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        for j in range(r.start[i], r.stop[i]):
            node = r.node[j]
            if s.kept[node] == 1:
                s.kept[node] = 2
            elif s.kept[node] == 2:
                s.kept[node] = 3
                s.held[0] -= 1
                s.held[1] += 1

    @staticmethod
    @lean_kernel
    def evicted(s, p, node, now):
        k = 1 if s.kept[node] == 3 else 0
        s.held[k] -= 1
        s.gone[k, node] = s.tally[k]
        s.tally[k] += 1
        s.kept[node] = 0

    @staticmethod
    @lean_kernel
    def choose(s, p, c, now):
        once = heap_of(p, 2 * c)
        again = heap_of(p, 2 * c + 1)
        if once.held[0] > 0 and (s.held[0] > s.target[0] or again.held[0] == 0):
            return heap_lowest(once)
        return heap_lowest(again) if again.held[0] > 0 else heap_lowest(once)
