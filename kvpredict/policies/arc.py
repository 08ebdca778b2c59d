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

from kvpredict.core.index import check_index, index_drop, index_get, index_put, make_index
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, push_front, unlink
from kvpredict.core.policy import Policy
from kvpredict.core.validate import list_nodes

__all__ = ["ARC"]

ONCE, OFTEN = 0, 1  # lists: T1 and T2, and their ghosts B1 and B2
UNITS, GHOSTS, CAPACITY, RETURNS, FREE = 0, 2, 4, 5, 6  # places in State.counts
KEY, SIZE = 0, 1  # places in a row of State.node
NEW = -1  # the object being admitted is no ghost


class State(NamedTuple):
    """Slots and ghosts are nodes of one pool: ``slots`` slots, then as many ghosts; the four lists share one index."""

    links: np.ndarray  # int32 [2 * (2 * slots + 4)], T1, T2, B1 and B2, newest in front; free ghosts by "older"
    where: np.ndarray  # int8 [2 * slots], the list (ONCE or OFTEN) that holds the node
    node: np.ndarray  # int64 [4 * slots], key and size of each node, side by side in one cache line
    cells: np.ndarray  # int64, index from key to ghost
    target: np.ndarray  # float64 [1], p
    # int64 [7]: units in T1 and T2, in B1 and B2; capacity; whose ghost the object being admitted was, or NEW; the
    # first free ghost, or -1.
    counts: np.ndarray


@lean_kernel
def _forget(s, ghost):
    """Take ``ghost`` out of its list and the index."""
    unlink(s.links, ghost)
    s.counts[GHOSTS + s.where[ghost]] -= s.node[2 * ghost + SIZE]
    index_drop(s.cells, s.node[2 * ghost + KEY], ghost)
    s.links[2 * ghost + 1] = s.counts[FREE]
    s.counts[FREE] = ghost


@lean_kernel
def _oldest_ghost(s, which):
    return back(s.links, s.where.size + GHOSTS + which)


@lean_kernel
def _remember(s, which, slot):
    """Make the object in ``slot`` the newest ghost of ``which`` list."""
    if s.counts[FREE] < 0:  # only with fewer slots than units can all ghosts be in use
        _forget(s, _oldest_ghost(s, which if s.counts[GHOSTS + which] > 0 else 1 - which))
    ghost = s.counts[FREE]
    s.counts[FREE] = s.links[2 * ghost + 1]
    key = s.node[2 * slot + KEY]
    size = s.node[2 * slot + SIZE]
    s.node[2 * ghost + KEY] = key
    s.node[2 * ghost + SIZE] = size
    s.where[ghost] = which
    s.counts[GHOSTS + which] += size
    push_front(s.links, s.where.size + GHOSTS + which, ghost)
    index_put(s.cells, key, ghost)


@lean_kernel
def _unlink_oldest(s, which):
    victim = back(s.links, s.where.size + which)
    unlink(s.links, victim)
    s.counts[UNITS + which] -= s.node[2 * victim + SIZE]
    return victim


@lean_kernel
def _trim(s, incoming):
    """Forget ghosts until the object fits the directory: |T1| + |B1| at most c, all four lists at most 2 c."""
    n = s.counts
    while n[GHOSTS + ONCE] > 0 and n[UNITS + ONCE] + n[GHOSTS + ONCE] + incoming > n[CAPACITY]:
        _forget(s, _oldest_ghost(s, ONCE))
    held = n[UNITS + ONCE] + n[UNITS + OFTEN] + incoming
    while n[GHOSTS + OFTEN] > 0 and held + n[GHOSTS + ONCE] + n[GHOSTS + OFTEN] > 2 * n[CAPACITY]:
        _forget(s, _oldest_ghost(s, OFTEN))


@dataclass(frozen=True)
class ARC(Policy):
    """Adaptive replacement cache."""

    name = "arc"

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        links = make_links(2 * slots, 4)
        links[2 * slots + 1 : 4 * slots : 2] = np.arange(slots + 1, 2 * slots + 1)
        links[4 * slots - 1] = -1
        return State(
            links=links,
            where=np.zeros(2 * slots, np.int8),
            node=np.zeros(4 * slots, np.int64),
            cells=make_index(slots),
            target=np.zeros(1, np.float64),
            counts=np.array([0, 0, 0, 0, capacity, NEW, slots], np.int64),
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
        n = s.counts
        n[RETURNS] = NEW
        ghost = index_get(s.cells, s.node, 2, e.key)
        if ghost >= 0:
            once = n[GHOSTS + ONCE]
            often = n[GHOSTS + OFTEN]
            n[RETURNS] = s.where[ghost]
            if n[RETURNS] == ONCE:
                s.target[0] = min(s.target[0] + e.size * max(1.0, often / once), np.float64(n[CAPACITY]))
            else:
                s.target[0] = max(s.target[0] - e.size * max(1.0, once / often), 0.0)
            _forget(s, ghost)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        n = s.counts
        once = n[UNITS + ONCE]
        if n[RETURNS] == NEW:
            if once + e.size > n[CAPACITY] and n[GHOSTS + ONCE] == 0:
                return _unlink_oldest(s, ONCE)  # T1 alone fills the first list's directory: no ghost
            _trim(s, e.size)
        over = once > s.target[0] or (once == s.target[0] and n[RETURNS] == OFTEN)
        which = ONCE if (once > 0 and over) or n[UNITS + OFTEN] == 0 else OFTEN
        victim = _unlink_oldest(s, which)
        _remember(s, which, victim)
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
        nodes = state.where.size
        rows = state.node.reshape(-1, 2)
        held: list[list[int]] = [list_nodes(state.links, nodes + i) for i in range(4)]  # T1, T2, B1, B2
        for i, members in enumerate(held):
            assert (state.where[members] == i % 2).all()
            assert rows[members, SIZE].sum() == state.counts[UNITS + i]
        ghosts = held[2] + held[3]
        assert sorted(held[0] + held[1]) == resident.tolist()
        assert set(rows[ghosts, KEY].tolist()).isdisjoint(rows[resident, KEY].tolist()), "a ghost is not in the cache"
        check_index(state.cells, state.node, 2, ghosts)
        free, node = set(), int(state.counts[FREE])
        while node >= 0:
            free.add(node)
            assert len(free) <= nodes, "the chain of free ghosts does not end"
            node = int(state.links[2 * node + 1])
        assert sorted(free | set(ghosts)) == list(range(nodes // 2, nodes))
        assert free.isdisjoint(ghosts)
        assert 0 <= state.target[0] <= state.counts[CAPACITY]
