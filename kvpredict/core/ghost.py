"""Ghost lists: ordered memories of keys that hold no slot any more, bounded in entries.

One ``Ghosts`` holds several lists (ARC has two) over one pool of nodes, with an index from key to node. Each node
keeps the key's size and two payload words, ``tag`` (int64) and ``value`` (float64), whose meaning is the policy's.
When the pool is full the oldest node of the list being added to makes room, or else of any other list.

The fields are columns of one matrix whose rows are 64 bytes, so that a miss touches one cache line of a ghost.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.index import index_drop, index_get, index_put, make_index
from kvpredict.core.jit import lean_kernel
from kvpredict.core.rows import make_rows

__all__ = ["Ghosts", "ghost_add", "ghost_drop", "ghost_find", "ghost_oldest", "make_ghosts"]


class Ghosts(NamedTuple):
    """State of ``lists`` ghost lists over ``n`` nodes; node ``n + k`` heads list ``k``."""

    cells: np.ndarray  # int64, index from key to node
    key: np.ndarray  # int64 [n]
    size: np.ndarray  # int64 [n]
    tag: np.ndarray  # int64 [n]
    value: np.ndarray  # float64 [n]
    where: np.ndarray  # int64 [n], the list that holds the node, -1 when free
    newer: np.ndarray  # int64 [n + lists], the neighbour towards the newest
    older: np.ndarray  # int64 [n + lists], the neighbour towards the oldest; of a free node the next free one, or -1
    free: np.ndarray  # int64 [1], the first free node, or -1
    free_count: np.ndarray  # int64 [1]
    counts: np.ndarray  # int64 [lists], nodes in each list
    units: np.ndarray  # int64 [lists], sum of sizes in each list


def make_ghosts(n: int, lists: int = 1) -> Ghosts:
    """Return ``lists`` empty ghost lists that share ``max(n, 1)`` nodes."""
    n = max(int(n), 1)
    rows = make_rows((n + lists, 8))
    key, size, tag, where, newer, older = (rows[:, j] for j in range(6))
    where[:n] = -1
    older[:n] = np.arange(1, n + 1)
    older[n - 1] = -1
    newer[n:] = older[n:] = np.arange(n, n + lists)
    return Ghosts(
        cells=make_index(n),
        key=key[:n],
        size=size[:n],
        tag=tag[:n],
        value=rows.view(np.float64)[:n, 6],
        where=where[:n],
        newer=newer,
        older=older,
        free=np.zeros(1, np.int64),
        free_count=np.array([n], np.int64),
        counts=np.zeros(lists, np.int64),
        units=np.zeros(lists, np.int64),
    )


@lean_kernel
def ghost_find(g, key):
    """Return the node that remembers ``key``, or -1; its list is ``g.where[node]``."""
    return index_get(g.cells, g.key, 1, key)


@lean_kernel
def ghost_oldest(g, which):
    """Return the oldest node of list ``which``, or -1 when it is empty."""
    node = g.newer[g.key.size + which]  # round the circle, what is newer than the head is the oldest
    return node if node < g.key.size else np.int64(-1)


@lean_kernel
def ghost_drop(g, node):
    """Forget ``node``."""
    which = g.where[node]
    newer = g.newer[node]
    older = g.older[node]
    g.older[newer] = older
    g.newer[older] = newer
    index_drop(g.cells, g.key[node], node)
    g.counts[which] -= 1
    g.units[which] -= g.size[node]
    g.where[node] = -1
    g.older[node] = g.free[0]
    g.free[0] = node
    g.free_count[0] += 1


@lean_kernel
def ghost_add(g, which, key, size):
    """Remember ``key`` at the newest end of list ``which``, moving it when known; return its node."""
    known = index_get(g.cells, g.key, 1, key)
    if known >= 0:
        ghost_drop(g, known)
    if g.free[0] < 0:
        oldest = ghost_oldest(g, which)
        other = 0
        while oldest < 0:
            oldest = ghost_oldest(g, other)
            other += 1
        ghost_drop(g, oldest)
    node = g.free[0]
    g.free[0] = g.older[node]
    g.free_count[0] -= 1
    head = g.key.size + which
    newest = g.older[head]
    g.key[node] = key
    g.size[node] = size
    g.tag[node] = 0
    g.value[node] = 0.0
    g.where[node] = which
    g.newer[node] = head
    g.older[node] = newest
    g.newer[newest] = node
    g.older[head] = node
    index_put(g.cells, key, node)
    g.counts[which] += 1
    g.units[which] += size
    return node
