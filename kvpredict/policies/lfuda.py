"""LFU-DA: LFU whose newcomers start where the last victim stood.

An object's priority is its frequency since it came in plus the cache's age, which is the priority of the last victim,
at its last use. As the age rises, objects that were popular long ago are overtaken and leave, which LFU never
achieves, and no parameter has to be tuned.

Arlitt, Cherkasova, Dilley, Friedrich and Jin, "Evaluating Content Management Techniques for Web Proxy Caches", ACM
SIGMETRICS Performance Evaluation Review 27(4), 2000: K = C F + L with C = 1. libcachesim adds the age to the priority
itself at each hit, K ← K + L, so that the age counts once for every hit since the object came in, and each hit after
the first eviction about doubles a priority. In the paper it is added once, to the frequency.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import Heap, check_heap, heap_drop, heap_pop, heap_push, heap_update, make_heap
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy

__all__ = ["LFUDA"]


class State(NamedTuple):
    heap: Heap  # by priority F + L; among equals, the one that reached it first
    uses: np.ndarray  # int64 [slots], F
    age: np.ndarray  # float64 [1], L
    clock: np.ndarray  # int64 [1], counts updates


@lean_kernel
def _tick(s):
    s.clock[0] += 1
    return s.clock[0]


@dataclass(frozen=True)
class LFUDA(Policy):
    """Least frequently used with dynamic aging."""

    name = "lfuda"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_heap(slots), np.zeros(slots, np.int64), np.zeros(1, np.float64), np.zeros(1, np.int64))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.uses[slot] += 1
        heap_update(s.heap, slot, s.uses[slot] + s.age[0], _tick(s))

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = heap_pop(s.heap)
        s.age[0] = s.heap.priority[victim]
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.uses[slot] = 1
        heap_push(s.heap, slot, 1 + s.age[0], _tick(s))

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        heap_drop(s.heap, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_heap(state.heap) == resident.tolist()
        assert (state.uses[resident] >= 1).all()
        assert (state.heap.priority[resident] >= state.age[0]).all(), "nothing ranks below the last victim"
        assert (state.heap.priority[resident] <= state.uses[resident] + state.age[0]).all()
