"""One FIFO queue of ghosts: keys that hold no slot any more, bounded in units and in entries.

Leaner than ``core.ghost`` (one queue, no payload): a policy that adds a ghost at every miss spends most of its time
here. Node ``i`` is the row ``nodes[4 * i : 4 * i + 4]``: key, size, newer node, older node. The last row heads the
circular list; its first two places hold the first free node (free ones are chained by "older") and the units held.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.index import check_index, index_await, index_drop, index_get, index_put, make_index
from kvpredict.core.jit import lean_kernel
from kvpredict.core.rows import make_rows

__all__ = [
    "GhostQueue",
    "check_ghost_queue",
    "make_ghost_queue",
    "queue_add",
    "queue_await",
    "queue_take",
    "queue_trim",
    "queue_units",
]

KEY, SIZE, NEWER, OLDER = 0, 1, 2, 3  # places in a row
FREE, UNITS = 0, 1  # places in the head's row


class GhostQueue(NamedTuple):
    """State of a queue of at most ``n`` ghosts."""

    cells: np.ndarray  # int64, index from key to node (core.index)
    nodes: np.ndarray  # int64 [4 * (n + 1)]


def make_ghost_queue(n: int) -> GhostQueue:
    """Return an empty queue of at most ``max(n, 1)`` ghosts."""
    n = max(int(n), 1)
    nodes = make_rows((n + 1, 4))
    nodes[:n, OLDER] = np.arange(1, n + 1)
    nodes[n - 1, OLDER] = -1
    nodes[n] = (0, 0, n, n)
    return GhostQueue(make_index(n), nodes.reshape(-1))


@lean_kernel
def queue_take(g, key):
    """Forget ``key``; return whether it was a ghost."""
    node = index_get(g.cells, g.nodes, 4, key)
    if node < 0:
        return False
    _forget(g.cells, g.nodes, node)
    return True


@lean_kernel
def queue_await(g, key):
    """Prefetch where ``key`` is looked up, or will be remembered."""
    index_await(g.cells, key)


@lean_kernel
def queue_add(g, key, size, limit):
    """Remember ``key``, which is not a ghost, and forget the oldest as long as ``limit`` units would be exceeded."""
    nodes = g.nodes
    head = nodes.size - 4
    if size > limit:
        return
    while nodes[head + UNITS] + size > limit or nodes[head + FREE] < 0:
        _forget(g.cells, nodes, nodes[head + NEWER])  # around the circle, newer than the head is the oldest
    node = nodes[head + FREE]
    row = 4 * node
    nodes[head + FREE] = nodes[row + OLDER]
    newest = nodes[head + OLDER]
    nodes[row + KEY] = key
    nodes[row + SIZE] = size
    nodes[row + NEWER] = head >> 2
    nodes[row + OLDER] = newest
    nodes[4 * newest + NEWER] = node
    nodes[head + OLDER] = node
    nodes[head + UNITS] += size
    index_put(g.cells, key, node)
    index_await(g.cells, nodes[4 * nodes[head + NEWER] + KEY])  # the next to be forgotten


@lean_kernel
def queue_units(g):
    """Return the units that the ghosts stand for."""
    return g.nodes[g.nodes.size - 4 + UNITS]


@lean_kernel
def queue_trim(g, limit):
    """Forget the oldest ghosts until the others stand for at most ``limit`` units, which is not negative."""
    head = g.nodes.size - 4
    while g.nodes[head + UNITS] > limit:
        _forget(g.cells, g.nodes, g.nodes[head + NEWER])


@lean_kernel
def _forget(cells, nodes, node):
    """Take ``node`` out of list and index and make it free."""
    row = 4 * node
    head = nodes.size - 4
    index_drop(cells, nodes[row + KEY], node)
    newer = nodes[row + NEWER]
    older = nodes[row + OLDER]
    nodes[4 * newer + OLDER] = older
    nodes[4 * older + NEWER] = newer
    nodes[head + UNITS] -= nodes[row + SIZE]
    nodes[row + OLDER] = nodes[head + FREE]
    nodes[head + FREE] = node


def check_ghost_queue(g: GhostQueue, limit: int) -> list[int]:
    """Assert that list, index, units and free nodes agree; return the keys from newest to oldest."""
    rows = g.nodes.reshape(-1, 4)
    n = len(rows) - 1
    held = []
    node = int(rows[n, OLDER])
    while node != n:
        assert rows[rows[node, NEWER], OLDER] == node
        held.append(node)
        assert len(held) <= n, "the list does not close"
        node = int(rows[node, OLDER])
    assert rows[n, NEWER] == (held[-1] if held else n)
    assert rows[held, SIZE].sum() == rows[n, UNITS] <= limit
    check_index(g.cells, g.nodes, 4, held)
    free, node = set(), int(rows[n, FREE])
    while node >= 0:
        free.add(node)
        node = int(rows[node, OLDER])
    assert len(free) + len(held) == n
    assert free.isdisjoint(held)
    return [int(key) for key in rows[held, KEY]]
