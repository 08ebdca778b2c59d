"""S3-FIFO: a small queue sorts out blocks used once; those used again move to the main queue, others leave a ghost.

Queues are in the order of storing; a block that was used since gets another round in the main queue. Only unused leaves
can go, so a queue is passed over where its next block is pinned or has children. A host tier is one queue, in the order
of its blocks' demotion or last use.

Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import heap_drop, heap_lowest, heap_push, heap_update
from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits, require
from kvpredict.llm.prefix.pool import heap_of, standing

__all__ = ["S3FIFO"]

STORED, GONE, SMALL = 0, 1, 2  # places in State.tally


class State(NamedTuple):
    main: np.ndarray  # uint8 [n], whether the node is in the main queue of the device
    uses: np.ndarray  # int8 [n], since it was stored on the device, the storing request left out; at most 3
    since: np.ndarray  # int64 [n], its number in the order of storing, demotion and use off the device
    gone: np.ndarray  # int64 [n], its number in the order of evictions from the small queue, -1: no ghost
    tally: np.ndarray  # int64 [3]
    share: np.ndarray  # float64 [1]


@dataclass(frozen=True)
class S3FIFO(PrefixPolicy):
    """Three FIFO queues.

    Parameters
    ----------
    small : float, default 0.1
        Share of the cache for blocks not yet used again.
    """

    name = "s3fifo"
    traits = Traits(heaps=2)

    small: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.small < 1, self, f"small must be between 0 and 1, got {self.small}")

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        return State(
            np.zeros(nodes, np.uint8),
            np.zeros(nodes, np.int8),
            np.zeros(nodes, np.int64),
            np.full(nodes, -1, np.int64),
            np.zeros(3, np.int64),
            np.array([self.small]),
        )

    @staticmethod
    @lean_kernel
    def side(s, node):
        return np.int64(s.main[node])

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return float(s.since[node])

    @staticmethod
    @lean_kernel
    def stored(s, p, node):
        known = s.gone[node] >= 0 and s.tally[GONE] - s.gone[node] <= (1.0 - s.share[0]) * p.capacity[0]
        s.main[node] = 1 if known else 0
        s.tally[SMALL] += 0 if known else 1
        s.gone[node] = -1
        s.uses[node] = -1
        s.since[node] = s.tally[STORED]
        s.tally[STORED] += 1

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        for j in range(r.start[i], r.stop[i]):
            node = r.node[j]
            if not p.resident[node, 0]:
                s.since[node] = s.tally[STORED]
                s.tally[STORED] += 1
            elif s.uses[node] < 3:
                s.uses[node] += 1

    @staticmethod
    @lean_kernel
    def evicted(s, p, node, now):
        if not s.main[node]:
            s.tally[SMALL] -= 1
            s.gone[node] = s.tally[GONE]
            s.tally[GONE] += 1
        s.main[node] = 0
        s.uses[node] = 0
        s.since[node] = s.tally[STORED]
        s.tally[STORED] += 1

    @staticmethod
    @lean_kernel
    def choose(s, p, c, now):
        small = heap_of(p, 2 * c)
        main = heap_of(p, 2 * c + 1)
        while True:
            if small.held[0] > 0 and (s.tally[SMALL] > s.share[0] * p.capacity[0] or main.held[0] == 0):
                node = heap_lowest(small)
                if s.uses[node] <= 0:
                    return node
                heap_drop(small, node)
                s.main[node] = 1
                s.uses[node] = 0
                s.tally[SMALL] -= 1
                s.since[node] = s.tally[STORED]
                s.tally[STORED] += 1
                heap_push(main, node, float(s.since[node]) + standing(p, node, now), p.order[node])
            else:
                node = heap_lowest(main)
                if s.uses[node] <= 0:
                    return node
                s.uses[node] -= 1
                s.since[node] = s.tally[STORED]
                s.tally[STORED] += 1
                heap_update(main, node, float(s.since[node]) + standing(p, node, now), p.order[node])
