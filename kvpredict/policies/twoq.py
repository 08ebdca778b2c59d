"""2Q: a FIFO for newcomers, an LRU for what comes back after leaving it, and a ghost queue that tells the two apart.

New objects pass through A1in, a FIFO; hits there change nothing, since uses in quick succession say little about
later ones. What leaves A1in is remembered in A1out, by key alone. An object asked for again while remembered enters
Am, an LRU list: it has been used twice at some distance.

Johnson and Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement Algorithm", VLDB 1994,
section 3.2 (full version), with its Kin of 25 % and Kout of 50 % of the cache.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.ghostqueue import GhostQueue, check_ghost_queue, make_ghost_queue, queue_add, queue_take
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, is_empty, make_links, move_to_front, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.validate import list_nodes

__all__ = ["TwoQ"]

IN, MAIN = 0, 1  # lists: A1in and Am
K_IN, K_OUT, UNITS_IN, RETURNS = 0, 1, 2, 3  # indices into State.counts


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 2)], A1in (newest insertion in front) and Am (newest use in front)
    where: np.ndarray  # uint8 [slots], the list that holds the slot
    key: np.ndarray  # int64 [slots]
    size: np.ndarray  # int64 [slots]
    out: GhostQueue  # A1out
    counts: np.ndarray  # int64 [4]: Kin, Kout, units in A1in, 1 while the object being admitted was in A1out


@dataclass(frozen=True)
class TwoQ(Policy):
    """2Q, the full version.

    Parameters
    ----------
    in_ratio : float, default 0.25
        Kin, the share of the capacity that A1in may hold before it is the one to evict from; in [0, 1].
    out_ratio : float, default 0.5
        Kout, the share of the capacity that the objects remembered in A1out may have held; in [0, 1].
    """

    name = "twoq"

    in_ratio: float = 0.25
    out_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.in_ratio <= 1, self, f"in_ratio must be in [0, 1], got {self.in_ratio}")
        require(0 <= self.out_ratio <= 1, self, f"out_ratio must be in [0, 1], got {self.out_ratio}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return State(
            links=make_links(slots, 2),
            where=np.zeros(slots, np.uint8),
            key=np.zeros(slots, np.int64),
            size=np.zeros(slots, np.int64),
            out=make_ghost_queue(min(slots, int(capacity * self.out_ratio))),
            counts=np.array([int(capacity * self.in_ratio), int(capacity * self.out_ratio), 0, 0], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        if s.where[slot] == MAIN:
            move_to_front(s.links, s.where.size + MAIN, slot)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.counts[RETURNS] = queue_take(s.out, e.key)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        slots = s.where.size
        if s.counts[UNITS_IN] > s.counts[K_IN] or is_empty(s.links, slots + MAIN):
            victim = back(s.links, slots + IN)
            s.counts[UNITS_IN] -= s.size[victim]
            queue_add(s.out, s.key[victim], s.size[victim], s.counts[K_OUT])
        else:
            victim = back(s.links, slots + MAIN)
        unlink(s.links, victim)
        return victim

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        s.key[slot] = e.key
        s.size[slot] = e.size
        which = MAIN if s.counts[RETURNS] else IN
        s.where[slot] = which
        if which == IN:
            s.counts[UNITS_IN] += e.size
        push_front(s.links, s.where.size + which, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)
        if s.where[slot] == IN:
            s.counts[UNITS_IN] -= s.size[slot]

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.where.size
        held_in, main = (list_nodes(state.links, slots + which) for which in (IN, MAIN))
        assert (state.where[held_in] == IN).all()
        assert (state.where[main] == MAIN).all()
        assert sorted(held_in + main) == resident.tolist()
        assert state.size[held_in].sum() == state.counts[UNITS_IN]
        remembered = check_ghost_queue(state.out, int(state.counts[K_OUT]))
        assert set(remembered).isdisjoint(state.key[resident].tolist()), "a ghost is not in the cache"
