"""S3-FIFO: three FIFO queues, so that what is never used again leaves quickly.

Most objects of a trace are used once before they would be evicted. A small queue takes every newcomer and passes on to
the main queue only what was hit at least ``threshold`` times; the rest leaves at once and is remembered by key alone,
in a ghost queue. A newcomer that the ghosts know goes straight to the main queue, which is a FIFO with reinsertion.

Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023, section 4 and algorithm 1.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from kvpredict.core.ghostqueue import (
    GhostQueue,
    check_ghost_queue,
    make_ghost_queue,
    queue_add,
    queue_await,
    queue_take,
)
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, move_to_front, newer, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.prefetch import prefetch
from kvpredict.core.validate import list_nodes

__all__ = ["S3FIFO"]

SMALL, MAIN = 0, 1  # the queues, by their sentinels' offset
KEY, SIZE, BORN = 0, 1, 2  # places in a slot's row of State.node
# Places in State.n: units held by each queue; units that ever entered the small one; units each may hold, ghosts
# included; hits for promotion; most hits counted; the newcomer was a ghost; something has been evicted.
UNITS, ENTERED, LIMITS, GHOST, THRESHOLD, MOST, RETURNING, EVICTED = 0, 2, 3, 5, 6, 7, 8, 9


class State(NamedTuple):
    links: np.ndarray  # int32 [2 * (slots + 2)], the small queue at sentinel slots, the main one after it
    node: np.ndarray  # int64 [4 * slots], a row a slot: key, size, n[ENTERED] on entering the small queue (main: -1)
    freq: np.ndarray  # uint8 [slots], hits since the object was inserted or moved, at most n[MOST]
    n: np.ndarray  # int64 [10], see above
    ghosts: GhostQueue  # keys evicted from the small queue


def make_queues(slots: int, capacity: int, small_ratio: float, ghost_ratio: float, threshold: int, most: int) -> State:
    """Return empty queues; a small queue of no units could not take a newcomer, so it has at least one."""
    small = max(1, int(capacity * small_ratio))
    limits = (small, capacity - small, int(capacity * ghost_ratio))
    return State(
        links=make_links(slots, 2),
        node=np.zeros(4 * slots, np.int64),
        freq=np.zeros(slots, np.uint8),
        n=np.array([0, 0, 0, *limits, threshold, most, 0, 0], np.int64),
        ghosts=make_ghost_queue(ceil(slots * ghost_ratio)),
    )


@dataclass(frozen=True)
class S3FIFO(Policy):
    """FIFO queues with quick demotion and ghosts.

    Parameters
    ----------
    small_ratio : float, default 0.1
        Share of the capacity, in units, given to the small queue.
    ghost_ratio : float, default 0.9
        Units that the ghosts stand for, relative to the capacity: as many as the main queue holds.
    threshold : int, default 2
        Hits in the small queue, 1 to 3, that earn a place in the main one.

    Notes
    -----
    Algorithm 1 lets the small queue grow over the whole cache while the cache fills; this follows the authors' later
    implementation, where it takes only its share until the first eviction. Misses for unit sizes equal libCacheSim's
    to the last one, but for caches of fewer than 20 objects: its small queue then holds one object at most, and it
    refuses objects as large as the small queue. So it does with sizes (10 % of the cache), which the paper does not
    ask for; nothing else differs there.
    """

    name = "s3fifo"

    small_ratio: float = 0.1
    ghost_ratio: float = 0.9
    threshold: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.small_ratio < 1, self, f"small_ratio must be in (0, 1), got {self.small_ratio}")
        require(0 <= self.ghost_ratio <= 8, self, f"ghost_ratio must be in [0, 8], got {self.ghost_ratio}")
        require(self.threshold in (1, 2, 3), self, f"threshold must be 1, 2 or 3, got {self.threshold}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        return make_queues(slots, capacity, self.small_ratio, self.ghost_ratio, self.threshold, 3)

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        if s.freq[slot] < s.n[MOST]:
            s.freq[slot] += 1

    @staticmethod
    @lean_kernel
    def admit(s, e):
        s.n[RETURNING] = queue_take(s.ghosts, e.key)
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        links, node, freq, n = s.links, s.node, s.freq, s.n
        small = freq.size + SMALL
        main = freq.size + MAIN
        n[EVICTED] = 1
        if n[UNITS + MAIN] <= n[LIMITS + MAIN]:
            slot = back(links, small)
            while slot != small:
                size = node[4 * slot + SIZE]
                unlink(links, slot)
                n[UNITS + SMALL] -= size
                if freq[slot] < n[THRESHOLD]:
                    queue_add(s.ghosts, node[4 * slot + KEY], size, n[GHOST])
                    after = back(links, small)
                    if after != small:  # the next victims, as likely as not
                        queue_await(s.ghosts, node[4 * after + KEY])
                        prefetch(node, 4 * newer(links, after))
                    return slot
                push_front(links, main, slot)
                n[UNITS + MAIN] += size
                node[4 * slot + BORN] = -1
                freq[slot] = 0
                slot = back(links, small)
        slot = back(links, main)
        while freq[slot] > 0:
            freq[slot] -= 1
            move_to_front(links, main, slot)
            slot = back(links, main)
        unlink(links, slot)
        n[UNITS + MAIN] -= node[4 * slot + SIZE]
        return slot

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        n = s.n
        s.freq[slot] = 0
        s.node[4 * slot + KEY] = e.key
        s.node[4 * slot + SIZE] = e.size
        # Until the first eviction the small queue takes its share alone and the rest fills the main one.
        if n[RETURNING] or (not n[EVICTED] and n[UNITS + SMALL] >= n[LIMITS + SMALL]):
            push_front(s.links, s.freq.size + MAIN, slot)
            n[UNITS + MAIN] += e.size
            s.node[4 * slot + BORN] = -1
        else:
            push_front(s.links, s.freq.size + SMALL, slot)
            n[UNITS + SMALL] += e.size
            n[ENTERED] += e.size
            s.node[4 * slot + BORN] = n[ENTERED]

    @staticmethod
    @lean_kernel
    def expect(s, slot, key, soon):
        if slot < 0 and not soon:
            queue_await(s.ghosts, key)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        unlink(s.links, slot)
        s.n[UNITS + (s.node[4 * slot + BORN] < 0)] -= s.node[4 * slot + SIZE]

    def validate(self, state: State, resident: np.ndarray) -> None:
        slots = state.freq.size
        rows = state.node.reshape(-1, 4)
        small, main = list_nodes(state.links, slots + SMALL), list_nodes(state.links, slots + MAIN)
        assert sorted(small + main) == resident.tolist()
        assert (rows[main, BORN] == -1).all()
        born = rows[small, BORN]
        assert (born[:-1] > born[1:]).all()
        assert ((born > 0) & (born <= state.n[ENTERED])).all()
        assert rows[small, SIZE].sum() == state.n[UNITS + SMALL]
        assert rows[main, SIZE].sum() == state.n[UNITS + MAIN]
        assert (state.freq[resident] <= state.n[MOST]).all()
        ghosts = check_ghost_queue(state.ghosts, int(state.n[GHOST]))
        assert not set(ghosts) & set(rows[resident, KEY].tolist())
