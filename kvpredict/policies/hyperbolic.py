"""Hyperbolic caching: rank by hits per time in the cache, evict the lowest of a random sample.

Frequency since an object entered, over the time since then, falls like a hyperbola while it is not used: a new object
gets time to prove itself, and an old one loses its credit without any aging pass. Ranks change with time, so no
ordered structure can hold them; sampling needs none.

Blankstein, Sen, Freedman, "Hyperbolic Caching: Flexible Caching for Web Applications", USENIX ATC 2017, sections 3
and 4.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.bag import Bag, bag_draw, bag_drop, bag_put, check_bag, make_bag
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, Traits, require
from kvpredict.core.random import seed_random

__all__ = ["Hyperbolic"]


class State(NamedTuple):
    bag: Bag
    worth: np.ndarray  # float64 [slots], accesses since insertion, each weighted by its cost (and size)
    since: np.ndarray  # int64 [slots], clock at insertion
    clock: np.ndarray  # int64 [1], requests seen
    settings: np.ndarray  # int64 [2]: samples, 1 when sizes weigh
    rng: np.ndarray  # int64 [1]


@lean_kernel
def _worth(s, e):
    return e.hint / e.size if s.settings[1] else e.hint


@dataclass(frozen=True)
class Hyperbolic(Policy):
    """Evict the fewest accesses (times cost) per time in the cache, of a sample.

    Parameters
    ----------
    samples : int, default 64
        Objects drawn, with replacement, for each eviction; the paper's choice.
    size_aware : bool, default False
        Divide by size: accesses per unit of space and time, the paper's variant for objects of different sizes.

    Notes
    -----
    Cost is the event's hint, 1 where nothing is known: then misses are libCacheSim's within the noise of sampling,
    which knows neither cost nor size here. Time is counted in requests, as in the paper's simulations.
    """

    name = "hyperbolic"
    traits = Traits(stochastic=True)

    samples: int = 64
    size_aware: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.samples <= 4096, self, f"samples must be in [1, 4096], got {self.samples}")
        if self.size_aware:
            object.__setattr__(self, "traits", Traits(stochastic=True, sized=True))

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            bag=make_bag(slots),
            worth=np.zeros(slots, np.float64),
            since=np.zeros(slots, np.int64),
            clock=np.zeros(1, np.int64),
            settings=np.array([self.samples, self.size_aware], np.int64),
            rng=seed_random(seed),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.clock[0] += 1
        s.worth[slot] += _worth(s, e)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.clock[0] += 1
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        now = s.clock[0]
        victim = bag_draw(s.bag, s.rng)
        worth = s.worth[victim]
        age = now - s.since[victim]
        for _ in range(s.settings[0] - 1):
            slot = bag_draw(s.bag, s.rng)
            # Compared crosswise: a division would cost more than all else here.
            if s.worth[slot] * age < worth * (now - s.since[slot]):
                victim = slot
                worth = s.worth[slot]
                age = now - s.since[slot]
        bag_drop(s.bag, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.worth[slot] = _worth(s, e)
        s.since[slot] = s.clock[0]
        bag_put(s.bag, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        bag_drop(s.bag, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_bag(state.bag) == resident.tolist()
        assert (state.since[resident] <= state.clock[0]).all()
