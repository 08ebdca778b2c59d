"""LIRS: rank objects by the distance between their last two uses, not by the last use alone.

Nearly the whole cache (99 %) is kept for LIR objects, those with low inter-reference recency. Stack S, in order of last
use, holds them, and above the oldest of them the HIR objects, resident or not: one used again while it is in S has a
shorter distance than that LIR object's recency, so the two change roles. Queue Q holds the resident HIR objects, the
next to evict first. A scan or a loop larger than the cache passes through Q and leaves the LIR objects alone.

Jiang and Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy to Improve Buffer Cache
Performance", SIGMETRICS 2002, section 3.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from kvpredict.core.index import check_index, index_drop, index_get, index_put, make_index
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, is_empty, make_links, move_to_front, push_front, unlink
from kvpredict.core.policy import Policy, require
from kvpredict.core.validate import list_nodes

__all__ = ["LIRS"]

KEY, SIZE = 0, 1  # places in a node's row of State.rows
LIR, STACKED = 1, 2  # bits of State.status
QUEUE, GHOSTS = 0, 1  # the lists in State.queue, by their sentinels' offset
# Places in State.n: units of LIR objects and the most of them; units in S and the most of them; the first free node
# of those for ghosts; the newcomer was in S.
LIR_UNITS, LIR_LIMIT, STACK_UNITS, STACK_LIMIT, FREE, RETURNING = range(6)


class State(NamedTuple):
    """Nodes are the slots and then those of the ghosts, the non-resident objects in S."""

    stack: np.ndarray  # int32 [2 * (nodes + 1)], S, the last use in front
    queue: np.ndarray  # int32 [2 * (nodes + 2)], Q and, oldest at the back too, the ghosts
    rows: np.ndarray  # int64 [2 * nodes], key and size; a free ghost's "size" is the next free one
    status: np.ndarray  # uint8 [nodes], bits LIR and STACKED
    cells: np.ndarray  # int64, index from key to ghost (core.index)
    n: np.ndarray  # int64 [6], see above
    slots: np.ndarray  # int64 [1]


@lean_kernel
def _forget(s, ghost):
    """Drop a ghost from S."""
    unlink(s.stack, ghost)
    unlink(s.queue, ghost)
    index_drop(s.cells, s.rows[2 * ghost + KEY], ghost)
    s.n[STACK_UNITS] -= s.rows[2 * ghost + SIZE]
    s.rows[2 * ghost + SIZE] = s.n[FREE]
    s.n[FREE] = ghost


@lean_kernel
def _prune(s):
    """Drop what lies below the oldest LIR object: a use of it would show a longer distance than any LIR object's."""
    nodes = s.status.size
    bottom = back(s.stack, nodes)
    while bottom != nodes and not s.status[bottom] & LIR:
        if bottom < s.slots[0]:
            unlink(s.stack, bottom)
            s.n[STACK_UNITS] -= s.rows[2 * bottom + SIZE]
            s.status[bottom] = 0
        else:
            _forget(s, bottom)
        bottom = back(s.stack, nodes)


@lean_kernel
def _to_lir(s, slot):
    """Give LIR status to ``slot``, on top of S; the oldest LIR objects beyond the limit become HIR, last in Q."""
    nodes = s.status.size
    n = s.n
    s.status[slot] = LIR | STACKED
    n[LIR_UNITS] += s.rows[2 * slot + SIZE]
    _prune(s)  # where there was no LIR object, S had no bottom
    while n[LIR_UNITS] > n[LIR_LIMIT]:
        bottom = back(s.stack, nodes)
        size = s.rows[2 * bottom + SIZE]
        unlink(s.stack, bottom)
        n[STACK_UNITS] -= size
        n[LIR_UNITS] -= size
        s.status[bottom] = 0
        push_front(s.queue, nodes + QUEUE, bottom)
        _prune(s)


@lean_kernel
def _push(s, slot):
    """Put ``slot`` on top of S; the oldest ghosts make room when S becomes too large."""
    nodes = s.status.size
    push_front(s.stack, nodes, slot)
    s.n[STACK_UNITS] += s.rows[2 * slot + SIZE]
    while s.n[STACK_UNITS] > s.n[STACK_LIMIT] and not is_empty(s.queue, nodes + GHOSTS):
        _forget(s, back(s.queue, nodes + GHOSTS))


@dataclass(frozen=True)
class LIRS(Policy):
    """Low inter-reference recency set.

    Parameters
    ----------
    hir_ratio : float, default 0.01
        Share of the capacity, in units, left to resident HIR objects; at least one unit.
    stack_ratio : float, default 2.0
        Units in stack S at most, non-resident objects included, relative to the capacity. The paper's stack has no
        bound; this one forgets the objects that have been non-resident for longest.

    Notes
    -----
    For unit sizes misses are within 0.2 % of libCacheSim's. They differ where an object is hit in Q that S has dropped.
    In the paper (case 3 of section 3.3) it stays HIR, goes on top of S and to the end of Q, and no LIR object is
    touched; libCacheSim demotes the oldest LIR object, which evicts one from Q, and gives the gap in the LIR set to the
    next newcomer, unseen before. With sizes libCacheSim also admits no object larger than Q (1 % of the cache), of
    which the paper, on pages of one size, says nothing; the refusal alone accounts for the difference, and where large
    objects are common it misses less than ours.
    """

    name = "lirs"

    hir_ratio: float = 0.01
    stack_ratio: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.hir_ratio < 1, self, f"hir_ratio must be in (0, 1), got {self.hir_ratio}")
        require(1 <= self.stack_ratio <= 8, self, f"stack_ratio must be in [1, 8], got {self.stack_ratio}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        ghosts = ceil(slots * self.stack_ratio)
        nodes = slots + ghosts
        rows = np.zeros((nodes, 2), np.int64)
        rows[slots:, SIZE] = np.arange(slots + 1, nodes + 1)
        rows[-1, SIZE] = -1
        lir_limit = capacity - max(1, int(capacity * self.hir_ratio))
        return State(
            stack=make_links(nodes),
            queue=make_links(nodes, 2),
            rows=rows.reshape(-1),
            status=np.zeros(nodes, np.uint8),
            cells=make_index(ghosts),
            n=np.array([0, lir_limit, 0, int(capacity * self.stack_ratio), slots, 0], np.int64),
            slots=np.array([slots], np.int64),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        nodes = s.status.size
        status = s.status[slot]
        if status & LIR:
            was_bottom = back(s.stack, nodes) == slot
            move_to_front(s.stack, nodes, slot)
            if was_bottom:
                _prune(s)
        elif status & STACKED and s.rows[2 * slot + SIZE] <= s.n[LIR_LIMIT]:
            move_to_front(s.stack, nodes, slot)
            unlink(s.queue, slot)
            _to_lir(s, slot)
        else:
            move_to_front(s.queue, nodes + QUEUE, slot)
            if status & STACKED:
                move_to_front(s.stack, nodes, slot)
            else:
                s.status[slot] = STACKED
                _push(s, slot)

    @staticmethod
    @lean_kernel
    def admit(s, e):
        ghost = index_get(s.cells, s.rows, 2, e.key)
        if ghost >= 0:
            _forget(s, ghost)
        s.n[RETURNING] = ghost >= 0
        return True

    @staticmethod
    @lean_kernel
    def evict(s, e):
        nodes = s.status.size
        n = s.n
        slot = back(s.queue, nodes + QUEUE)
        if slot >= nodes:  # no resident HIR object: the owner removed them, or the cache is too small for one
            slot = back(s.stack, nodes)
            unlink(s.stack, slot)
            n[STACK_UNITS] -= s.rows[2 * slot + SIZE]
            n[LIR_UNITS] -= s.rows[2 * slot + SIZE]
            _prune(s)
            return slot
        unlink(s.queue, slot)
        if s.status[slot] & STACKED:
            if n[FREE] < 0:
                _forget(s, back(s.queue, nodes + GHOSTS))
            ghost = n[FREE]
            n[FREE] = s.rows[2 * ghost + SIZE]
            s.rows[2 * ghost + KEY] = s.rows[2 * slot + KEY]
            s.rows[2 * ghost + SIZE] = s.rows[2 * slot + SIZE]
            # The ghost takes the slot's place in S.
            push_front(s.stack, s.stack[2 * slot], ghost)
            unlink(s.stack, slot)
            push_front(s.queue, nodes + GHOSTS, ghost)
            index_put(s.cells, s.rows[2 * ghost + KEY], ghost)
        return slot

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        n = s.n
        s.rows[2 * slot + KEY] = e.key
        s.rows[2 * slot + SIZE] = e.size
        _push(s, slot)
        # As long as the LIR set is not full every newcomer belongs to it.
        fits = n[LIR_UNITS] + e.size <= n[LIR_LIMIT]
        if fits or (n[RETURNING] and e.size <= n[LIR_LIMIT]):
            _to_lir(s, slot)
        else:
            s.status[slot] = STACKED
            push_front(s.queue, s.status.size + QUEUE, slot)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        status = s.status[slot]
        if status & STACKED:
            unlink(s.stack, slot)
            s.n[STACK_UNITS] -= s.rows[2 * slot + SIZE]
        if status & LIR:
            s.n[LIR_UNITS] -= s.rows[2 * slot + SIZE]
            _prune(s)
        else:
            unlink(s.queue, slot)

    def validate(self, state: State, resident: np.ndarray) -> None:
        nodes, slots, n = state.status.size, int(state.slots[0]), state.n
        size = state.rows[SIZE::2]
        stack = list_nodes(state.stack, nodes)
        queue = list_nodes(state.queue, nodes + QUEUE)
        ghosts = list_nodes(state.queue, nodes + GHOSTS)
        lir = [node for node in stack if node < slots and state.status[node] & LIR]
        assert sorted(lir + queue) == resident.tolist()
        assert not stack or not lir or stack[-1] == lir[-1], "the oldest LIR object is not at the bottom of S"
        assert all(bool(state.status[slot] & STACKED) == (slot in stack) for slot in queue)
        assert [node for node in stack if node >= slots] == ghosts
        assert size[lir].sum() == n[LIR_UNITS] <= n[LIR_LIMIT]
        assert size[stack].sum() == n[STACK_UNITS] <= n[STACK_LIMIT]
        check_index(state.cells, state.rows, 2, ghosts)
        assert not set(state.rows[0::2][ghosts].tolist()) & set(state.rows[0::2][resident].tolist())
        free, node = set(), int(n[FREE])
        while node >= 0:
            free.add(node)
            node = int(size[node])
        assert len(free) + len(ghosts) == nodes - slots
        assert free.isdisjoint(ghosts)
