"""BeladySize: Belady's rule for objects of different sizes, by what each occupies until it is used again.

Keeping an object costs its size times the wait for its next use; of a random sample the dearest goes. What is never
used again is not admitted, and what has seen its last use goes before anything else. Finding the true optimum is
NP-hard once sizes differ (Chrobak et al., "Caching Is Hard", Algorithmica 63, 2012), so this oracle is a strong
reference and not a bound.

The rule is the one that libCacheSim calls BeladySize.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.bag import Bag, bag_draw, bag_drop, bag_put, check_bag, make_bag
from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, Traits, require
from kvpredict.core.random import seed_random

__all__ = ["BeladySize"]


class State(NamedTuple):
    alive: Bag  # slots that will be used again
    dead: Bag  # slots that will not
    size: np.ndarray  # int64 [slots]
    next_use: np.ndarray  # float64 [slots], index of the next use
    clock: np.ndarray  # int64 [1], index of the present request
    samples: np.ndarray  # int64 [1]
    rng: np.ndarray  # int64 [1]


@lean_kernel
def forget(s, slot):
    """Take ``slot`` out of its bag."""
    if s.alive.place[slot] >= 0:
        bag_drop(s.alive, slot)
    else:
        bag_drop(s.dead, slot)


@dataclass(frozen=True)
class BeladySize(Policy):
    """The oracle for objects of different sizes: evict the largest size times time to next use of a sample.

    Parameters
    ----------
    samples : int, default 128
        Objects drawn, with replacement, for each eviction.

    Notes
    -----
    The hint of an event is the index of the key's next use, ``inf`` for none. libCacheSim drops an object at its last
    use; here it stays until room is needed and then goes first, which leaves the same hits.
    """

    name = "beladysize"
    traits = Traits(oracle=True, sized=True, stochastic=True, bypass=True)

    samples: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.samples <= 4096, self, f"samples must be in [1, 4096], got {self.samples}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            alive=make_bag(slots),
            dead=make_bag(slots),
            size=np.zeros(slots, np.int64),
            next_use=np.zeros(slots, np.float64),
            clock=np.zeros(1, np.int64),
            samples=np.array([self.samples], np.int64),
            rng=seed_random(seed),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.clock[0] += 1
        s.next_use[slot] = e.hint
        if e.hint == np.inf and s.alive.place[slot] >= 0:
            bag_drop(s.alive, slot)
            bag_put(s.dead, slot)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.clock[0] += 1
        return e.hint != np.inf

    @staticmethod
    @lean_kernel
    def evict(s, e):
        if s.dead.held[0] > 0:
            victim = s.dead.slots[s.dead.held[0] - 1]
            bag_drop(s.dead, victim)
            return victim
        victim = bag_draw(s.alive, s.rng)
        dearest = s.size[victim] * (s.next_use[victim] - s.clock[0])
        for _ in range(s.samples[0] - 1):
            slot = bag_draw(s.alive, s.rng)
            cost = s.size[slot] * (s.next_use[slot] - s.clock[0])
            if cost > dearest:
                victim = slot
                dearest = cost
        bag_drop(s.alive, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.size[slot] = e.size
        s.next_use[slot] = e.hint
        bag_put(s.alive, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        forget(s, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        alive, dead = check_bag(state.alive), check_bag(state.dead)
        assert sorted(alive + dead) == resident.tolist()
        assert np.isfinite(state.next_use[alive]).all()
        assert np.isinf(state.next_use[dead]).all()
