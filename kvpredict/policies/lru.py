"""LRU: evict what was used longest ago.

One list ordered by last use. Recency predicts reuse well where programs work on sets that change slowly, and badly
under scans and loops larger than the cache.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, move_to_front, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["LRU"]


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 1)], newest use in front


@lean_kernel
def _slots(s):
    return s.links.size // 2 - 1


@dataclass(frozen=True)
class LRU(Policy):
    """Least recently used."""

    name = "lru"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_links(slots))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        move_to_front(s.links, _slots(s), slot)

    @staticmethod
    @lean_kernel
    def evict(s, e):
        victim = back(s.links, _slots(s))
        unlink(s.links, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        push_front(s.links, _slots(s), slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        assert sorted(list_nodes(state.links, _slots(state))) == resident.tolist()
