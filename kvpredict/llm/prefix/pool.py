"""Pool: the tree of known blocks, and which of them one or more caches hold.

Blocks are nodes ``0 … n - 1`` of a tree; what is remembered of a node (uses, times, standing) is shared by all caches.
Row 0 is the cache that serves. With a second tier row 1 is host memory; the rows after it are shadows, which hold
node numbers only. In each row the nodes that may be evicted, unused leaves, stand in a heap by rank, lowest first, so
that nothing is ever stranded without its prefix. A second heap holds the times at which ranks change.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.heap import Heap
from kvpredict.core.jit import lean_kernel

__all__ = ["Pool", "Requests", "ahead", "heap_of", "make_pool", "no_requests", "standing", "timer_of"]

LEVEL = 1e12  # ranks of one standing stay within it
DIRTY = 4096  # nodes whose rank a policy may change out of turn, at once


class Pool(NamedTuple):
    """State of ``c`` caches over ``n`` nodes; a policy with ``k`` heaps a cache has ``h = c * k`` of them."""

    parent: np.ndarray  # int32 [n], -1: first block of a prompt
    depth: np.ndarray  # int32 [n]
    running: np.ndarray  # int32 [n], requests in progress that use the node; such nodes are pinned
    touches: np.ndarray  # int32 [n], requests that used it and ended
    first: np.ndarray  # float64 [n], time of the first use's end
    last: np.ndarray  # float64 [n], time of the last use's end
    order: np.ndarray  # int64 [n], number of that use; of one request's blocks the deepest has the lowest
    next_use: np.ndarray  # float64 [n], number of the next request to use it, for oracles
    priority: np.ndarray  # float32 [n], from hints
    expires: np.ndarray  # float64 [n], time from which it goes first
    pinned: np.ndarray  # float64 [n], time until which it goes last
    resident: np.ndarray  # uint8 [n, c]; by node first, because a use asks all caches
    children: np.ndarray  # int32 [n, c], children that the cache holds
    used: np.ndarray  # int64 [c]
    capacity: np.ndarray  # int64 [c], nodes
    follows: np.ndarray  # int64 [c], by which of the policy's rankings a cache evicts
    slots: np.ndarray  # int32 [h, n], the heaps
    place: np.ndarray  # int32 [h, n]
    rank: np.ndarray  # float64 [h, n]
    held: np.ndarray  # int64 [h, 1]
    timer_slots: np.ndarray  # int32 [c, n], or [c, 0] where no rank changes with time
    timer_place: np.ndarray  # int32 [c, n]
    timer_rank: np.ndarray  # float64 [c, n]
    timer_held: np.ndarray  # int64 [c, 1]
    tally: np.ndarray  # int64 [3]: uses so far; nodes in dirty; nodes in gone
    dirty: np.ndarray  # int32 [DIRTY]
    gone: np.ndarray  # int32 [n], nodes that left a tier lately, a ring


class Requests(NamedTuple):
    """``n`` requests as kernels see them; see ``RequestTrace``."""

    start: np.ndarray  # int64 [n], where its blocks begin in node
    stop: np.ndarray  # int64 [n], where they end
    node: np.ndarray  # int32 [m]
    prompt: np.ndarray  # int64 [n], blocks of the prompt
    time: np.ndarray  # float64 [n]
    tokens: np.ndarray  # float64 [n, 2]: input, output
    block: np.ndarray  # float64 [n], tokens of a full block
    session: np.ndarray  # int64 [n]
    hint: np.ndarray  # float64 [n, len(HINTS)]
    next_use: np.ndarray  # float64 [m], or [0] where the policy is no oracle


def make_pool(parent: np.ndarray, depth: np.ndarray, capacities: list[int], heaps: int, timed: bool) -> Pool:
    """Return empty caches of these capacities over the nodes of a tree."""
    n, c = len(parent), len(capacities)
    timers = n if timed else 0
    return Pool(
        parent=np.ascontiguousarray(parent, np.int32),
        depth=np.ascontiguousarray(depth, np.int32),
        running=np.zeros(n, np.int32),
        touches=np.zeros(n, np.int32),
        first=np.zeros(n, np.float64),
        last=np.full(n, -np.inf),
        order=np.zeros(n, np.int64),
        next_use=np.zeros(n, np.float64),
        priority=np.zeros(n, np.float32),
        expires=np.full(n, np.inf),
        pinned=np.full(n, -np.inf),
        resident=np.zeros((n, c), np.uint8),
        children=np.zeros((n, c), np.int32),
        used=np.zeros(c, np.int64),
        capacity=np.array(capacities, np.int64),
        follows=np.zeros(c, np.int64),
        slots=np.zeros((c * heaps, n), np.int32),
        place=np.full((c * heaps, n), -1, np.int32),
        rank=np.zeros((c * heaps, n), np.float64),
        held=np.zeros((c * heaps, 1), np.int64),
        timer_slots=np.zeros((c, timers), np.int32),
        timer_place=np.full((c, timers), -1, np.int32),
        timer_rank=np.zeros((c, timers), np.float64),
        timer_held=np.zeros((c, 1), np.int64),
        tally=np.zeros(3, np.int64),
        dirty=np.zeros(DIRTY, np.int32),
        gone=np.zeros(max(1, n), np.int32),
    )


def no_requests(rows: int, blocks: int, hints: int) -> Requests:
    """Return room for ``rows`` requests of ``blocks`` blocks together."""
    return Requests(
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(blocks, np.int32),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.float64),
        np.zeros((rows, 2), np.float64),
        np.zeros(rows, np.float64),
        np.full(rows, -1, np.int64),
        np.full((rows, hints), np.nan),
        np.zeros(0, np.float64),
    )


@lean_kernel
def heap_of(p, row):
    """Return heap number ``row``."""
    return Heap(p.slots[row], p.place[row], p.rank[row], p.order, p.held[row])


@lean_kernel
def timer_of(p, c):
    """Return the heap of cache ``c`` that tells whose rank changes next."""
    return Heap(p.timer_slots[c], p.timer_place[c], p.timer_rank[c], p.order, p.timer_held[c])


@lean_kernel
def standing(p, node, now):
    """Return what hints add to a node's rank: pinned above priority above nothing above expired."""
    if now < p.pinned[node]:
        return 1000.0 * LEVEL
    if now >= p.expires[node]:
        return -1000.0 * LEVEL
    return p.priority[node] * LEVEL


@lean_kernel
def ahead(p, node, now):
    """Return when the standing of a node changes next, inf for never."""
    when = np.inf
    if now < p.pinned[node]:
        when = p.pinned[node]
    if now < p.expires[node] and p.expires[node] < when:
        when = p.expires[node]
    return when
