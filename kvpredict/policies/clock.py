"""CLOCK: a FIFO queue that gives a second chance to what was hit.

A hit raises a small counter. Eviction looks at the oldest object: with a counter above zero it is lowered and the
object goes round once more, else it leaves. With one bit this approximates LRU without moving anything on a hit; with
more bits it tends to LFU. The objects stand in a ring and a hand points to the oldest, so that a second chance moves
nothing but the hand.

Corbató, "A Paging Experiment with the Multics System", MIT Project MAC, 1968. More than one bit is the generalised
clock of Smith, "Sequentiality and Prefetching in Database Systems", ACM TODS 3(3), 1978.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import make_links, newer, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.validate import list_nodes

__all__ = ["Clock"]


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * slots], a ring, from older to newer
    hand: np.ndarray  # int32 [1], the oldest, -1 when there is none
    chances: np.ndarray  # uint8 [slots], rounds that the object will survive
    most: np.ndarray  # uint8 [1], the most chances an object can have


@lean_kernel
def _leave(s, slot):
    """Take ``slot`` out of the ring; the hand passes to the next newer one."""
    if s.hand[0] == slot:
        after = newer(s.links, slot)
        s.hand[0] = after if after != slot else -1
    unlink(s.links, slot)


@dataclass(frozen=True)
class Clock(Policy):
    """Second chance, also known as FIFO-reinsertion.

    Parameters
    ----------
    bits : int, default 1
        Width of an object's counter, 1 to 8.
    """

    name = "clock"

    bits: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.bits <= 8, self, f"bits must be 1 to 8, got {self.bits}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            make_links(slots, 0),
            np.full(1, -1, np.int32),
            np.zeros(slots, np.uint8),
            np.array([2**self.bits - 1], np.uint8),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        if s.chances[slot] < s.most[0]:
            s.chances[slot] += 1

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = s.hand[0]
        while s.chances[victim]:
            s.chances[victim] -= 1
            victim = newer(s.links, victim)
        s.hand[0] = victim
        _leave(s, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.chances[slot] = 0
        if s.hand[0] < 0:
            s.hand[0] = slot
            s.links[2 * slot] = s.links[2 * slot + 1] = slot
        else:
            push_front(s.links, s.hand[0], slot)  # newer than all: last in the ring before the hand

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        _leave(s, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        hand = int(state.hand[0])
        ring = [] if hand < 0 else [hand, *list_nodes(state.links, hand)]
        assert sorted(ring) == resident.tolist()
        assert (state.chances[resident] <= state.most[0]).all()
