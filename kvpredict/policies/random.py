"""Random: evict any object, each with the same chance.

It keeps no order and learns nothing, so no access pattern is its worst case: a loop slightly larger than the cache,
on which LRU and FIFO never hit, costs it little more than the share that does not fit. The draw is uniform;
libcachesim's is not: of 33 objects some leave more than twice as often as others.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.bag import Bag, bag_draw, bag_drop, bag_put, check_bag, make_bag
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, Traits
from kvpredict.core.random import seed_random

__all__ = ["Random"]


class State(NamedTuple):
    held: Bag  # the slots in use
    rng: np.ndarray  # int64 [1]


@dataclass(frozen=True)
class Random(Policy):
    """Uniformly random eviction, from the seed of the state."""

    name = "random"
    traits = Traits(stochastic=True)

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_bag(slots), seed_random(seed))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        pass

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = bag_draw(s.held, s.rng)
        bag_drop(s.held, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        bag_put(s.held, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        bag_drop(s.held, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_bag(state.held) == resident.tolist()
