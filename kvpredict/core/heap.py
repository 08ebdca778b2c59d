"""An indexed binary heap over slots: the slot of lowest rank in O(1), any slot's rank changed in O(log n).

A slot's rank is the pair (priority, tie): a float, and an integer that orders equal priorities, so that the order is
total and does not depend on how the heap was built.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = ["Heap", "check_heap", "heap_drop", "heap_lowest", "heap_pop", "heap_push", "heap_update", "make_heap"]


class Heap(NamedTuple):
    """A heap of at most ``n`` slots."""

    slots: np.ndarray  # int32 [n], in heap order
    place: np.ndarray  # int32 [n], where each slot stands in slots, -1 when it is not in the heap
    priority: np.ndarray  # float64 [n], by slot
    tie: np.ndarray  # int64 [n], by slot
    held: np.ndarray  # int64 [1]


def make_heap(n: int) -> Heap:
    """Return an empty heap for slots ``0 … n - 1``."""
    return Heap(
        slots=np.zeros(n, np.int32),
        place=np.full(n, -1, np.int32),
        priority=np.zeros(n, np.float64),
        tie=np.zeros(n, np.int64),
        held=np.zeros(1, np.int64),
    )


@lean_kernel
def _rise(slots, place, priority, tie, slot, at):
    """Seat ``slot`` at ``at`` or above."""
    rank = priority[slot]
    order = tie[slot]
    while at > 0:
        parent = (at - 1) >> 1
        other = slots[parent]
        if priority[other] < rank or (priority[other] == rank and tie[other] <= order):
            break
        slots[at] = other
        place[other] = at
        at = parent
    slots[at] = slot
    place[slot] = at


@lean_kernel
def _sink(slots, place, priority, tie, count, slot, at):
    """Seat ``slot`` at ``at`` or below."""
    rank = priority[slot]
    order = tie[slot]
    child = 2 * at + 1
    while child < count:
        other = slots[child]
        if child + 1 < count:
            right = slots[child + 1]
            if priority[right] < priority[other] or (priority[right] == priority[other] and tie[right] < tie[other]):
                child += 1
                other = right
        if rank < priority[other] or (rank == priority[other] and order <= tie[other]):
            break
        slots[at] = other
        place[other] = at
        at = child
        child = 2 * at + 1
    slots[at] = slot
    place[slot] = at


@lean_kernel
def heap_push(h, slot, priority, tie):
    """Put in a ``slot`` that is not in the heap."""
    h.priority[slot] = priority
    h.tie[slot] = tie
    h.held[0] += 1
    _rise(h.slots, h.place, h.priority, h.tie, slot, h.held[0] - 1)


@lean_kernel
def heap_update(h, slot, priority, tie):
    """Change the rank of a ``slot`` in the heap."""
    lower = priority < h.priority[slot] or (priority == h.priority[slot] and tie < h.tie[slot])
    h.priority[slot] = priority
    h.tie[slot] = tie
    if lower:
        _rise(h.slots, h.place, h.priority, h.tie, slot, h.place[slot])
    else:
        _sink(h.slots, h.place, h.priority, h.tie, h.held[0], slot, h.place[slot])


@lean_kernel
def heap_drop(h, slot):
    """Take a ``slot`` out, wherever it stands."""
    at = h.place[slot]
    h.place[slot] = -1
    h.held[0] -= 1
    last = h.slots[h.held[0]]
    if last != slot:
        if h.priority[last] < h.priority[slot] or (h.priority[last] == h.priority[slot] and h.tie[last] < h.tie[slot]):
            _rise(h.slots, h.place, h.priority, h.tie, last, at)
        else:
            _sink(h.slots, h.place, h.priority, h.tie, h.held[0], last, at)


@lean_kernel
def heap_lowest(h):
    """Return the slot of lowest rank; the heap must not be empty."""
    return h.slots[0]


@lean_kernel
def heap_pop(h):
    """Take out and return the slot of lowest rank; the heap must not be empty."""
    slot = h.slots[0]
    heap_drop(h, slot)
    return slot


def check_heap(h: Heap) -> list[int]:
    """Assert the heap's order and its index; return the slots in it, sorted. For tests."""
    count = int(h.held[0])
    held = h.slots[:count].tolist()
    assert sorted(held) == np.flatnonzero(h.place >= 0).tolist()
    for at, slot in enumerate(held):
        assert h.place[slot] == at
        above = held[max(at - 1, 0) // 2]
        assert (h.priority[above], h.tie[above]) <= (h.priority[slot], h.tie[slot])
    return sorted(held)
