"""LFU: evict what was used least often since it came in.

Objects of one frequency stand in a queue, oldest first, and the queues stand in a list by frequency; a hit moves an
object to the queue next door, so each operation is O(1). Counts start at 1 on insertion and are forgotten on eviction.
What was popular long ago stays for ever: LFU-DA and the sketches of W-TinyLFU cure that.

Shah, Mitra and Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, front, is_empty, make_links, newer, push_back, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["LFU"]


class State(NamedTuple):
    """``slots`` queues are enough: every queue in use holds an object. Queue ``q`` is headed by ``slots + q``."""

    links: np.ndarray  # int32 [4 * slots], the queues' objects, newest in front
    order: np.ndarray  # int32 [2 * (slots + 1)], the queues in use, most frequent in front
    uses: np.ndarray  # int64 [slots], frequency of each queue
    queue: np.ndarray  # int32 [slots], the queue of each slot
    free: np.ndarray  # int32 [slots], stack of free queues
    top: np.ndarray  # int64 [1], how many queues are free


@lean_kernel
def _open(s, count, after):
    """Make an empty queue for ``count`` next to ``after``, towards the more frequent (the head: at the back)."""
    s.top[0] -= 1
    made = s.free[s.top[0]]
    s.uses[made] = count
    push_back(s.order, after, made)
    return made


@lean_kernel
def _leave(s, slot):
    """Take ``slot`` out of its queue, and close the queue when that was the last."""
    slots = s.queue.size
    queue = s.queue[slot]
    unlink(s.links, slot)
    if is_empty(s.links, slots + queue):
        unlink(s.order, queue)
        s.free[s.top[0]] = queue
        s.top[0] += 1


@dataclass(frozen=True)
class LFU(Policy):
    """Least frequently used; among equals, what reached the frequency first."""

    name = "lfu"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            links=make_links(slots, slots),
            order=make_links(slots),
            uses=np.zeros(slots, np.int64),
            queue=np.zeros(slots, np.int32),
            free=np.arange(slots, dtype=np.int32)[::-1].copy(),
            top=np.array([slots], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        slots = s.queue.size
        queue = s.queue[slot]
        count = s.uses[queue] + 1
        target = newer(s.order, queue)
        if target == slots or s.uses[target] != count:
            if front(s.links, slots + queue) == back(s.links, slots + queue):
                s.uses[queue] = count  # alone in its queue: the queue moves with it
                return
            target = _open(s, count, queue)
        _leave(s, slot)
        s.queue[slot] = target
        push_front(s.links, slots + target, slot)

    @staticmethod
    @lean_kernel
    def evict(s, e):
        slots = s.queue.size
        victim = back(s.links, slots + back(s.order, slots))
        _leave(s, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        slots = s.queue.size
        target = back(s.order, slots)
        if target == slots or s.uses[target] != 1:
            target = _open(s, 1, slots)
        s.queue[slot] = target
        push_front(s.links, slots + target, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        _leave(s, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.queue.size
        queues = list_nodes(state.order, slots)
        counts = state.uses[queues]
        assert (np.diff(counts) < 0).all(), "queues stand in order of frequency"
        assert len(queues) + state.top[0] == slots
        assert set(queues).isdisjoint(state.free[: state.top[0]].tolist())
        held = []
        for queue in queues:
            members = list_nodes(state.links, slots + queue)
            assert members, "an empty queue is closed"
            assert (state.queue[members] == queue).all()
            held += members
        assert sorted(held) == resident.tolist()
