"""Belady's MIN: evict what is used again farthest in the future.

It needs to know the future, so only the simulator can run it: it is the bound that no policy for objects of one size
can beat, and what the gaps of others are measured against.

Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966; proved
optimal by Mattson et al., IBM Systems Journal 9(2), 1970. With ``bypass`` an object that would itself be the next
victim is not admitted, which a cache that need not store what it serves may do.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import Heap, check_heap, heap_drop, heap_lowest, heap_pop, heap_push, heap_update, make_heap
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, Traits

__all__ = ["Belady"]

CAPACITY, USED, BYPASS = 0, 1, 2  # indices into State.counts


class State(NamedTuple):
    heap: Heap  # by minus the index of the next use: the farthest is lowest, among those never used again the largest
    size: np.ndarray  # int64 [slots]
    counts: np.ndarray  # int64 [3]: capacity in units, units used, 1 when admission may be refused


@dataclass(frozen=True)
class Belady(Policy):
    """The optimal policy for objects of one size (MIN, OPT).

    Parameters
    ----------
    bypass : bool, default False
        Refuse an object whose next use is no sooner than that of every object held, once there is no room for it.

    Notes
    -----
    The hint of an event is the index of the key's next use, ``inf`` for none. With sizes it ranks by next use alone
    and is no longer a bound; see BeladySize.
    """

    name = "belady"
    traits = Traits(oracle=True)

    bypass: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bypass:  # only then is refusing part of what this policy promises
            object.__setattr__(self, "traits", Traits(oracle=True, bypass=True))

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_heap(slots), np.zeros(slots, np.int64), np.array([capacity, 0, self.bypass], np.int64))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        heap_update(s.heap, slot, -e.hint, -s.size[slot])

    @staticmethod
    @lean_kernel
    def admit(s, e):
        if not s.counts[BYPASS]:
            return True
        held = s.heap.held[0]
        if s.counts[USED] + e.size <= s.counts[CAPACITY] and held < s.size.size:
            return True
        return -e.hint > s.heap.priority[heap_lowest(s.heap)]

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = heap_pop(s.heap)
        s.counts[USED] -= s.size[victim]
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.size[slot] = e.size
        s.counts[USED] += e.size
        heap_push(s.heap, slot, -e.hint, -e.size)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        heap_drop(s.heap, slot)
        s.counts[USED] -= s.size[slot]

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_heap(state.heap) == resident.tolist()
        assert state.counts[USED] == state.size[resident].sum()
