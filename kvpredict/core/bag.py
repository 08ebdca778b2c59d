"""A bag of slots to draw from: put in, take out and draw at random, each in O(1).

The slots in use stand without gaps at the start of one array; a slot that leaves is replaced by the last one.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.random import below

__all__ = ["Bag", "bag_draw", "bag_drop", "bag_put", "check_bag", "make_bag"]


class Bag(NamedTuple):
    """A bag of at most ``n`` slots."""

    slots: np.ndarray  # int32 [n], the first held[0] are in the bag
    place: np.ndarray  # int32 [n], where each slot stands in slots, -1 when it is not in the bag
    held: np.ndarray  # int64 [1]


def make_bag(n: int) -> Bag:
    """Return an empty bag for slots ``0 … n - 1``."""
    return Bag(np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros(1, np.int64))


@lean_kernel
def bag_put(bag, slot):
    """Put in a ``slot`` that is not in the bag."""
    at = bag.held[0]
    bag.slots[at] = slot
    bag.place[slot] = at
    bag.held[0] = at + 1


@lean_kernel
def bag_drop(bag, slot):
    """Take a ``slot`` out."""
    at = bag.place[slot]
    bag.held[0] -= 1
    last = bag.slots[bag.held[0]]
    bag.slots[at] = last
    bag.place[last] = at
    bag.place[slot] = -1


@lean_kernel
def bag_draw(bag, rng):
    """Return a slot drawn uniformly, left in the bag; the bag must not be empty."""
    return bag.slots[below(rng, bag.held[0])]


def check_bag(bag: Bag) -> list[int]:
    """Assert that both arrays agree; return the slots in the bag, sorted. For tests."""
    held = bag.slots[: int(bag.held[0])].tolist()
    assert [int(bag.place[slot]) for slot in held] == list(range(len(held)))
    assert sorted(held) == np.flatnonzero(bag.place >= 0).tolist()
    return sorted(held)
