"""Slots in order of a whole number that only grows: the lowest, and one more for any slot, in O(1).

Slots of one number stand in a queue, oldest there first, and the queues stand in a list by number; one more moves a
slot to the queue next door. A slot put in with a number of its own finds its queue from the lowest one up.

Shah, Mitra and Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, front, is_empty, make_links, newer, push_back, push_front, unlink
from kvpredict.core.validate import list_nodes

__all__ = [
    "Frequencies",
    "check_frequencies",
    "frequency_drop",
    "frequency_lowest",
    "frequency_more",
    "frequency_of",
    "frequency_put",
    "make_frequencies",
]


class Frequencies(NamedTuple):
    """``slots`` queues are enough: every queue in use holds a slot. Queue ``q`` is headed by ``slots + q``."""

    links: np.ndarray  # int32 [4 * slots], the queues' slots, newest in front
    order: np.ndarray  # int32 [2 * (slots + 1)], the queues in use, highest in front
    uses: np.ndarray  # int64 [slots], number of each queue
    queue: np.ndarray  # int32 [slots], the queue of each slot
    free: np.ndarray  # int32 [slots], stack of free queues
    top: np.ndarray  # int64 [1], how many queues are free


def make_frequencies(slots: int) -> Frequencies:
    """Return an empty order for slots ``0 … slots - 1``."""
    return Frequencies(
        links=make_links(slots, slots),
        order=make_links(slots),
        uses=np.zeros(slots, np.int64),
        queue=np.zeros(slots, np.int32),
        free=np.arange(slots, dtype=np.int32)[::-1].copy(),
        top=np.array([slots], np.int64),
    )


@lean_kernel
def _open(f, count, after):
    """Make an empty queue for ``count`` next to ``after``, towards the higher ones (the head: at the back)."""
    f.top[0] -= 1
    made = f.free[f.top[0]]
    f.uses[made] = count
    push_back(f.order, after, made)
    return made


@lean_kernel
def frequency_drop(f, slot):
    """Take ``slot`` out, and close its queue when that was the last there."""
    slots = f.queue.size
    queue = f.queue[slot]
    unlink(f.links, slot)
    if is_empty(f.links, slots + queue):
        unlink(f.order, queue)
        f.free[f.top[0]] = queue
        f.top[0] += 1


@lean_kernel
def frequency_lowest(f):
    """Return the slot of the lowest number; among equals, which has had it longest. There must be one."""
    slots = f.queue.size
    return back(f.links, slots + back(f.order, slots))


@lean_kernel
def frequency_more(f, slot):
    """Give ``slot`` one more."""
    slots = f.queue.size
    queue = f.queue[slot]
    count = f.uses[queue] + 1
    target = newer(f.order, queue)
    if target == slots or f.uses[target] != count:
        if front(f.links, slots + queue) == back(f.links, slots + queue):
            f.uses[queue] = count  # alone in its queue: the queue moves with it
            return
        target = _open(f, count, queue)
    frequency_drop(f, slot)
    f.queue[slot] = target
    push_front(f.links, slots + target, slot)


@lean_kernel
def frequency_of(f, slot):
    """Return the number of ``slot``, which must be there."""
    return f.uses[f.queue[slot]]


@lean_kernel
def frequency_put(f, slot, count):
    """Put in a ``slot`` that is not there, with ``count``."""
    slots = f.queue.size
    below = np.int32(slots)
    target = back(f.order, slots)
    while target != slots and f.uses[target] < count:
        below = target
        target = newer(f.order, target)
    if target == slots or f.uses[target] != count:
        target = _open(f, count, below)
    f.queue[slot] = target
    push_front(f.links, slots + target, slot)


def check_frequencies(f: Frequencies) -> list[int]:
    """Assert the order and its queues; return the slots in it, sorted. For tests."""
    slots = f.queue.size
    queues = list_nodes(f.order, slots)
    assert (np.diff(f.uses[queues]) < 0).all(), "queues stand in order of their numbers"
    assert len(queues) + f.top[0] == slots
    assert set(queues).isdisjoint(f.free[: f.top[0]].tolist())
    held = []
    for queue in queues:
        members = list_nodes(f.links, slots + queue)
        assert members, "an empty queue is closed"
        assert (f.queue[members] == queue).all()
        held += members
    return sorted(held)
