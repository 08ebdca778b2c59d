"""ARC: two LRU lists, for objects used once and more than once, and ghosts of both that move the border.

A miss that is remembered as a ghost of the first list says that this list was too short, a ghost of the second says
that the other was; each moves the target ``p`` for the first list's length. So the cache tunes itself between recency
and frequency, and a scan passes through the first list without touching the second.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, figure 4. With sized objects all
lengths are in units, and ``p`` moves by the size of the returning object where the paper moves it by one page; it
moves in libcachesim by one byte, hence hardly at all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.ghostqueue import (
    GhostQueue,
    check_ghost_queue,
    make_ghost_queue,
    queue_add,
    queue_take,
    queue_trim,
    queue_units,
)
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["ARC"]

ONCE, OFTEN = 0, 1  # lists: T1 and T2
UNITS, CAPACITY, RETURNS = 0, 2, 3  # places in State.counts; UNITS + ONCE and UNITS + OFTEN
KEY, SIZE = 0, 1  # places in State.node
NEW = -1  # the object being admitted is no ghost


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 2)], T1 and T2, newest use in front
    where: np.ndarray  # int8 [slots], the list that holds the slot
    node: np.ndarray  # int64 [2 * slots], key and size of each slot, in one cache line
    once: GhostQueue  # B1
    often: GhostQueue  # B2
    target: np.ndarray  # float64 [1], p
    counts: np.ndarray  # int64 [4]: units in T1 and T2; capacity; whose ghost the object being admitted was, or NEW


@lean_kernel
def _unlink_oldest(s, which):
    victim = back(s.links, s.where.size + which)
    unlink(s.links, victim)
    s.counts[UNITS + which] -= s.node[2 * victim + SIZE]
    return victim


@lean_kernel
def _trim(s, incoming):
    """Forget ghosts until the object fits the directory: |T1| + |B1| at most c, all four lists at most 2 c."""
    counts = s.counts
    room = counts[CAPACITY] - counts[UNITS + ONCE] - incoming
    queue_trim(s.once, max(room, 0))
    queue_trim(s.often, max(room + counts[CAPACITY] - counts[UNITS + OFTEN] - queue_units(s.once), 0))


@dataclass(frozen=True)
class ARC(Policy):
    """Adaptive replacement cache."""

    name = "arc"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            links=make_links(slots, 2),
            where=np.zeros(slots, np.int8),
            node=np.zeros(2 * slots, np.int64),
            once=make_ghost_queue(slots),
            often=make_ghost_queue(slots),
            target=np.zeros(1, np.float64),
            counts=np.array([0, 0, capacity, NEW], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        unlink(s.links, slot)
        if s.where[slot] == ONCE:
            s.where[slot] = OFTEN
            s.counts[UNITS + ONCE] -= s.node[2 * slot + SIZE]
            s.counts[UNITS + OFTEN] += s.node[2 * slot + SIZE]
        push_front(s.links, s.where.size + OFTEN, slot)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        once = queue_units(s.once)
        often = queue_units(s.often)
        returns = NEW
        if queue_take(s.once, e.key):
            returns = ONCE
            step = e.size * max(1.0, often / once)
            s.target[0] = min(s.target[0] + step, np.float64(s.counts[CAPACITY]))
        elif queue_take(s.often, e.key):
            returns = OFTEN
            step = e.size * max(1.0, once / often)
            s.target[0] = max(s.target[0] - step, 0.0)
        s.counts[RETURNS] = returns
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        counts = s.counts
        once = counts[UNITS + ONCE]
        if counts[RETURNS] == NEW:
            if once + e.size > counts[CAPACITY] and queue_units(s.once) == 0:
                return _unlink_oldest(s, ONCE)  # T1 alone fills the first list's directory: no ghost
            _trim(s, e.size)
        over = once > s.target[0] or (once == s.target[0] and counts[RETURNS] == OFTEN)
        if (once > 0 and over) or counts[UNITS + OFTEN] == 0:
            victim = _unlink_oldest(s, ONCE)
            queue_add(s.once, s.node[2 * victim + KEY], s.node[2 * victim + SIZE], 2 * counts[CAPACITY])
        else:
            victim = _unlink_oldest(s, OFTEN)
            queue_add(s.often, s.node[2 * victim + KEY], s.node[2 * victim + SIZE], 2 * counts[CAPACITY])
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        which = ONCE if s.counts[RETURNS] == NEW else OFTEN
        s.where[slot] = which
        s.node[2 * slot + KEY] = e.key
        s.node[2 * slot + SIZE] = e.size
        if which == ONCE:
            _trim(s, e.size)  # for when room came from deletions, or from objects of other sizes
        s.counts[UNITS + which] += e.size
        push_front(s.links, s.where.size + which, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)
        s.counts[UNITS + s.where[slot]] -= s.node[2 * slot + SIZE]

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.where.size
        nodes = state.node.reshape(-1, 2)
        capacity = int(state.counts[CAPACITY])
        held = []
        for which in (ONCE, OFTEN):
            members = list_nodes(state.links, slots + which)
            assert (state.where[members] == which).all()
            assert nodes[members, SIZE].sum() == state.counts[UNITS + which]
            held += members
        assert sorted(held) == resident.tolist()
        ghosts = [check_ghost_queue(queue, 2 * capacity) for queue in (state.once, state.often)]
        assert set(ghosts[0]).isdisjoint(ghosts[1])
        assert set(ghosts[0] + ghosts[1]).isdisjoint(nodes[resident, KEY].tolist()), "a ghost is not in the cache"
        assert 0 <= state.target[0] <= capacity
