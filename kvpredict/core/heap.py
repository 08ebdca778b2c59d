"""An indexed heap over slots: the slot of lowest rank in O(1), any slot's rank changed in O(log n).

A slot's rank is the pair (priority, tie): a float, and an integer that orders equal priorities, so that the order is
total and does not depend on how the heap was built. Each place has four below it, whose ranks lie side by side in one
cache line, so going down touches a line a level and half as many levels as with two (LaMarca and Ladner, "The Influence
of Caches on the Performance of Heaps", ACM JEA 1, 1996).
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.rows import make_rows

__all__ = [
    "Heap",
    "check_heap",
    "heap_drop",
    "heap_lowest",
    "heap_pop",
    "heap_priority",
    "heap_push",
    "heap_update",
    "make_heap",
]


class Heap(NamedTuple):
    """A heap of at most ``n`` slots."""

    slots: np.ndarray  # int32 [n], in heap order
    place: np.ndarray  # int32 [n], where each slot stands in slots, -1 when it is not in the heap
    seat: np.ndarray  # float64 [2 * n], in heap order: priority, and room for the tie
    order: np.ndarray  # int64 [2 * n], the same memory: of it the odd places, ties in heap order
    held: np.ndarray  # int64 [1]


def make_heap(n: int) -> Heap:
    """Return an empty heap for slots ``0 … n - 1``."""
    order = make_rows((2 * n + 6,))[6:]  # so that places 1, 5, 9, …, where groups of four begin, begin cache lines
    return Heap(
        slots=np.zeros(n, np.int32),
        place=np.full(n, -1, np.int32),
        seat=order.view(np.float64),
        order=order,
        held=np.zeros(1, np.int64),
    )


@lean_kernel
def _below(seat, order, a, b):
    """Tell whether the rank at place ``a`` is lower than that at ``b``, without a branch."""
    first, second = seat[2 * a], seat[2 * b]
    return (first < second) | ((first == second) & (order[2 * a + 1] < order[2 * b + 1]))


@lean_kernel
def _rise(h, slot, rank, tie, at):
    """Seat ``slot`` at ``at`` or above."""
    slots, place, seat, order = h.slots, h.place, h.seat, h.order
    while at > 0:
        parent = (at - 1) >> 2
        above = seat[2 * parent]
        if above < rank or (above == rank and order[2 * parent + 1] <= tie):
            break
        other = slots[parent]
        slots[at] = other
        place[other] = at
        seat[2 * at] = above
        order[2 * at + 1] = order[2 * parent + 1]
        at = parent
    slots[at] = slot
    place[slot] = at
    seat[2 * at] = rank
    order[2 * at + 1] = tie


@lean_kernel
def _sink(h, slot, rank, tie, at):
    """Seat ``slot`` at ``at`` or below."""
    slots, place, seat, order = h.slots, h.place, h.seat, h.order
    count = h.held[0]
    child = 4 * at + 1
    while child < count:
        least = child
        if child + 3 < count:
            least += np.int64(_below(seat, order, child + 1, child))
            other = child + 2 + np.int64(_below(seat, order, child + 3, child + 2))
            least = other if _below(seat, order, other, least) else least
        else:
            for other in range(child + 1, count):
                if _below(seat, order, other, least):
                    least = other
        lowest = seat[2 * least]
        if rank < lowest or (rank == lowest and tie <= order[2 * least + 1]):
            break
        moved = slots[least]
        slots[at] = moved
        place[moved] = at
        seat[2 * at] = lowest
        order[2 * at + 1] = order[2 * least + 1]
        at = least
        child = 4 * at + 1
    slots[at] = slot
    place[slot] = at
    seat[2 * at] = rank
    order[2 * at + 1] = tie


@lean_kernel
def _move(h, slot, priority, tie, at):
    """Seat ``slot``, whose rank changes to this, where that belongs; the place ``at`` is empty, or its own."""
    before = h.seat[2 * at]
    if priority < before or (priority == before and tie < h.order[2 * at + 1]):
        _rise(h, slot, priority, tie, at)
    else:
        _sink(h, slot, priority, tie, at)


@lean_kernel
def heap_push(h, slot, priority, tie):
    """Put in a ``slot`` that is not in the heap."""
    h.held[0] += 1
    _rise(h, slot, np.float64(priority), tie, h.held[0] - 1)


@lean_kernel
def heap_update(h, slot, priority, tie):
    """Change the rank of a ``slot`` in the heap."""
    _move(h, slot, np.float64(priority), tie, np.int64(h.place[slot]))


@lean_kernel
def heap_drop(h, slot):
    """Take a ``slot`` out, wherever it stands."""
    at = np.int64(h.place[slot])
    h.place[slot] = -1
    h.held[0] -= 1
    last = h.held[0]
    if at != last:
        _move(h, h.slots[last], h.seat[2 * last], h.order[2 * last + 1], at)


@lean_kernel
def heap_priority(h, slot):
    """Return the priority of a ``slot`` in the heap."""
    return h.seat[2 * h.place[slot]]


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
        above = max(at - 1, 0) // 4
        assert (h.seat[2 * above], h.order[2 * above + 1]) <= (h.seat[2 * at], h.order[2 * at + 1])
    return sorted(held)
