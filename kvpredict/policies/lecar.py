"""LeCaR: two experts, LRU and LFU, and weights that learn by regret which of them to follow.

Each eviction follows one expert, drawn by weight, and remembers the key with the expert's name. When a remembered key
is asked for, that expert was wrong: its weight falls, the more the sooner the key came back.

Vietri et al., "Driving Cache Replacement with ML-based LeCaR", HotStorage 2018, section 3, algorithms 1 and 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.ghost import Ghosts, ghost_add, ghost_drop, ghost_find, ghost_oldest, make_ghosts
from kvpredict.core.heap import Heap, check_heap, heap_drop, heap_lowest, heap_push, heap_update, make_heap
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, move_to_front, push_front, unlink
from kvpredict.core.policy import Policy, Traits, require
from kvpredict.core.random import seed_random, uniform
from kvpredict.core.validate import check_ghosts, list_nodes

__all__ = ["LeCaR"]

LRU, LFU = 0, 1  # the experts: indices into State.weights, and the lowest bit of a ghost's tag
FLOOR = 1e-10  # a weight of exactly 0 could never grow again


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 1)], newest use in front
    heap: Heap  # by frequency, then by last use
    key: np.ndarray  # int64 [slots]
    size: np.ndarray  # int64 [slots]
    weights: np.ndarray  # float64 [2], of LRU and LFU, their sum is 1
    rates: np.ndarray  # float64 [2]: learning rate, discount over as many requests as objects are held
    counts: np.ndarray  # int64 [2]: requests seen, most units in the history
    history: Ghosts  # evicted keys; tag = 2 * clock of the eviction + expert
    rng: np.ndarray  # int64 [1]


@lean_kernel
def punish(s, expert, waited):
    """Lower the weight of ``expert``, whose victim came back after ``waited`` requests."""
    held = max(s.heap.held[0], 1)
    regret = s.rates[1] ** (waited / held)
    wrong = max(s.weights[expert] * np.exp(-s.rates[0] * regret), FLOOR)
    right = max(s.weights[1 - expert], FLOOR)
    s.weights[expert] = wrong / (wrong + right)
    s.weights[1 - expert] = right / (wrong + right)


@dataclass(frozen=True)
class LeCaR(Policy):
    """LRU or LFU, drawn by weights that shrink with each expert's mistakes.

    Parameters
    ----------
    learning_rate : float, default 0.45
        How strongly a mistake lowers a weight.
    discount : float, default 0.005
        Regret left after as many requests as the cache holds objects (the paper's d is its 1/N-th power).
    history_ratio : float, default 1.0
        Units that the remembered keys stand for, relative to the capacity.

    Notes
    -----
    As in libCacheSim, one history in order of eviction serves both experts, where the paper keeps two of fixed size:
    which expert needs more of it changes. A returning key's frequency starts again at 1, as the paper's LFU has it;
    equal frequencies go by least recent use.
    """

    name = "lecar"
    traits = Traits(stochastic=True)

    learning_rate: float = 0.45
    discount: float = 0.005
    history_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.learning_rate > 0, self, f"learning_rate must be positive, got {self.learning_rate}")
        require(0 < self.discount <= 1, self, f"discount must be in (0, 1], got {self.discount}")
        require(0 < self.history_ratio <= 8, self, f"history_ratio must be in (0, 8], got {self.history_ratio}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            links=make_links(slots),
            heap=make_heap(slots),
            key=np.zeros(slots, np.int64),
            size=np.zeros(slots, np.int64),
            weights=np.full(2, 0.5),
            rates=np.array([self.learning_rate, self.discount]),
            counts=np.array([0, int(capacity * self.history_ratio)], np.int64),
            history=make_ghosts(int(slots * self.history_ratio)),
            rng=seed_random(seed),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        s.counts[0] += 1
        move_to_front(s.links, s.size.size, slot)
        heap_update(s.heap, slot, s.heap.priority[slot] + 1.0, s.counts[0])

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.counts[0] += 1
        node = ghost_find(s.history, e.key)
        if node >= 0:
            tag = s.history.tag[node]
            punish(s, tag & 1, s.counts[0] - (tag >> 1))
            ghost_drop(s.history, node)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        if uniform(s.rng) < s.weights[LRU]:
            expert = LRU
            victim = back(s.links, s.size.size)
        else:
            expert = LFU
            victim = heap_lowest(s.heap)
        unlink(s.links, victim)
        heap_drop(s.heap, victim)
        size = s.size[victim]
        if size <= s.counts[1]:
            while s.history.units[0] + size > s.counts[1]:
                ghost_drop(s.history, ghost_oldest(s.history, 0))
            node = ghost_add(s.history, 0, s.key[victim], size)
            s.history.tag[node] = 2 * s.counts[0] + expert
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.key[slot] = e.key
        s.size[slot] = e.size
        push_front(s.links, s.size.size, slot)
        heap_push(s.heap, slot, 1.0, s.counts[0])

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)
        heap_drop(s.heap, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert check_heap(state.heap) == resident.tolist()
        assert sorted(list_nodes(state.links, state.size.size)) == resident.tolist()
        assert abs(state.weights.sum() - 1) < 1e-9
        assert (state.weights > 0).all()
        check_ghosts(state.history)
        assert state.history.units[0] <= state.counts[1]
        assert not any(ghost_find(state.history, int(state.key[slot])) >= 0 for slot in resident)
