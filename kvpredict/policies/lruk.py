"""LRU-K: evict the object whose K-th last use lies farthest back.

The last use alone cannot tell a one-time read from a popular object; the K-th last can, and its distance estimates
how often the object is used. Uses in quick succession (the correlated reference period) count as one. Histories
outlive the objects: one that returns while its history is retained is judged by it.

O'Neil, O'Neil and Weikum, "The LRU-K Page Replacement Algorithm for Database Disk Buffering", SIGMOD 1993, section
2.1. Time is counted in requests. Objects with fewer than K known uses go first, the least recently used of them in
front (the paper's subsidiary policy). The paper retains histories for a fixed period; here a fixed number of them is
kept, so that memory is bounded. libcachesim keeps no history of evicted objects and evicts those with fewer than K
uses first in, first out; without retained histories an object that returns looks new for ever, which the paper warns
of in section 2.1.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.ghost import Ghosts, ghost_add, ghost_drop, ghost_find, make_ghosts
from kvpredict.core.heap import Heap, check_heap, heap_drop, heap_lowest, heap_pop, heap_push, heap_update, make_heap
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, require
from kvpredict.core.validate import check_ghosts

__all__ = ["LRUK"]

NOW, CORRELATED, REMEMBERED = 0, 1, 2  # indices into State.counts


class State(NamedTuple):
    heap: Heap  # by K-th last use (0: unknown); among equals the least recently used
    uses: np.ndarray  # int64 [slots * k], HIST: times of the last k uncorrelated uses, the last one first
    last: np.ndarray  # int64 [slots], LAST: time of the last use, correlated or not
    key: np.ndarray  # int64 [slots]
    ghosts: Ghosts  # evicted objects whose history is retained
    past: np.ndarray  # int64 [retained * k], HIST of the ghosts
    returning: np.ndarray  # int64 [k], HIST of the object being admitted, as it was retained (0: unknown)
    spared: np.ndarray  # int32 [slots], scratch: slots that eviction passes over
    counts: np.ndarray  # int64 [3]: requests so far, the correlated reference period, 1 to remember evicted ones


@lean_kernel
def _rank(s, slot):
    k = s.returning.size
    return np.float64(s.uses[k * slot + k - 1])


@dataclass(frozen=True)
class LRUK(Policy):
    """Least recently used by the K-th last use.

    Parameters
    ----------
    k : int, default 2
        Which use counts, 1 (plain LRU) to 16.
    correlated : int, default 0
        The correlated reference period, in requests: a use at most so long after the last one is part of it, and an
        object used so recently is not evicted as long as there are others.
    retained_ratio : float, default 1.0
        Histories retained of evicted objects, as a share of the most objects that the cache can hold; 0 for none.
    """

    name = "lruk"

    k: int = 2
    correlated: int = 0
    retained_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.k <= 16, self, f"k must be 1 to 16, got {self.k}")
        require(self.correlated >= 0, self, f"correlated must be at least 0, got {self.correlated}")
        require(0 <= self.retained_ratio <= 16, self, f"retained_ratio must be in [0, 16], got {self.retained_ratio}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        retained = max(1, int(slots * self.retained_ratio))
        return State(
            heap=make_heap(slots),
            uses=np.zeros(slots * self.k, np.int64),
            last=np.zeros(slots, np.int64),
            key=np.zeros(slots, np.int64),
            ghosts=make_ghosts(retained),
            past=np.zeros(retained * self.k, np.int64),
            returning=np.zeros(self.k, np.int64),
            spared=np.zeros(slots, np.int32),
            counts=np.array([0, self.correlated, int(self.retained_ratio > 0)], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.counts[NOW] += 1
        now = s.counts[NOW]
        uses = s.uses
        if now - s.last[slot] > s.counts[CORRELATED]:
            first = slot * s.returning.size
            span = s.last[slot] - uses[first]  # the correlated uses count as one, and take no time
            for i in range(first + s.returning.size - 1, first, -1):
                uses[i] = uses[i - 1] + span if uses[i - 1] else 0
            uses[first] = now
        s.last[slot] = now
        heap_update(s.heap, slot, _rank(s, slot), now)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.counts[NOW] += 1
        k = s.returning.size
        node = ghost_find(s.ghosts, e.key)
        for i in range(k):
            s.returning[i] = s.past[k * node + i] if node >= 0 else 0
        if node >= 0:
            ghost_drop(s.ghosts, node)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        k = s.returning.size
        spared = 0
        latest = s.counts[NOW] - s.counts[CORRELATED]
        while s.heap.held[0] > 0 and s.last[heap_lowest(s.heap)] >= latest:
            s.spared[spared] = heap_pop(s.heap)
            spared += 1
        # Where all were used that recently, one has to go after all: the lowest of them.
        victim = heap_pop(s.heap) if s.heap.held[0] > 0 else s.spared[0]
        for i in range(spared):
            if s.spared[i] != victim:
                heap_push(s.heap, s.spared[i], _rank(s, s.spared[i]), s.last[s.spared[i]])
        if s.counts[REMEMBERED]:
            node = ghost_add(s.ghosts, 0, s.key[victim], 1)
            for i in range(k):
                s.past[k * node + i] = s.uses[k * victim + i]
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        k = s.returning.size
        now = s.counts[NOW]
        s.uses[k * slot] = now
        for i in range(1, k):
            s.uses[k * slot + i] = s.returning[i - 1]
        s.last[slot] = now
        s.key[slot] = e.key
        heap_push(s.heap, slot, _rank(s, slot), now)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        heap_drop(s.heap, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_heap(state.heap) == resident.tolist()
        check_ghosts(state.ghosts)
        uses = state.uses.reshape(-1, self.k)[resident]
        assert (uses[:, 0] <= state.last[resident]).all()
        known = np.where(uses == 0, -1, uses)
        assert (np.diff(known, axis=1) <= 0).all(), "histories run back in time"
        assert (state.heap.priority[resident] == uses[:, -1]).all()
        assert (state.heap.tie[resident] == state.last[resident]).all()
