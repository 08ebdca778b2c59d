"""FIFO: evict what came in first.

A hit changes nothing, so it is the cheapest policy there is, and the floor to measure others against. It suits
streams where objects are asked for soon after they come in, or never again.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["FIFO"]


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 1)], newest insertion in front


@lean_kernel
def _slots(s):
    return s.links.size // 2 - 1


@dataclass(frozen=True)
class FIFO(Policy):
    """First in, first out."""

    name = "fifo"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(make_links(slots))

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        pass

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
