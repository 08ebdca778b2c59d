"""SIEVE: a FIFO queue with a hand that spares what was hit since it last passed.

A hit only sets a bit. The hand moves from the oldest object towards the newest, clears set bits and evicts the first
object without one; survivors keep their place, so new objects are sifted quickly while popular ones stay.

Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024, section 3, algorithm 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, newer, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["SIEVE"]


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 1)], newest insertion in front
    visited: np.ndarray  # uint8 [slots], 1 when hit since the hand passed
    hand: np.ndarray  # int32 [1], next slot to look at; the sentinel stands for the oldest


@dataclass(frozen=True)
class SIEVE(Policy):
    """FIFO with lazy promotion and quick demotion."""

    name = "sieve"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_links(slots), np.zeros(slots, np.uint8), np.array([slots], np.int32))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.visited[slot] = 1

    @staticmethod
    @lean_kernel
    def evict(s, e):
        sentinel = s.visited.size
        slot = s.hand[0]
        if slot == sentinel:
            slot = back(s.links, sentinel)
        while s.visited[slot]:
            s.visited[slot] = 0
            slot = newer(s.links, slot)
            if slot == sentinel:
                slot = back(s.links, sentinel)
        s.hand[0] = newer(s.links, slot)
        unlink(s.links, slot)
        return slot

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.visited[slot] = 0
        push_front(s.links, s.visited.size, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        if s.hand[0] == slot:
            s.hand[0] = newer(s.links, slot)
        unlink(s.links, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.visited.size
        assert sorted(list_nodes(state.links, slots)) == resident.tolist()
        assert state.hand[0] == slots or state.hand[0] in resident
