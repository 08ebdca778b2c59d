"""Ghost lists: ordered memories of keys that hold no slot any more, bounded in entries.

One ``Ghosts`` holds several lists (ARC has two) over one pool of nodes, with a table from key to node. Each node
keeps the key's size and two payload words, ``tag`` (int64) and ``value`` (float64), whose meaning is the policy's.
When the pool is full the oldest node of the list being added to makes room, or else of any other list.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import kernel
from kvpredict.core.lists import back, make_links, push_front, unlink
from kvpredict.core.table import Table, make_table, table_get, table_pop, table_put

__all__ = ["Ghosts", "ghost_add", "ghost_drop", "ghost_find", "ghost_oldest", "make_ghosts"]


class Ghosts(NamedTuple):
    """State of ``lists`` ghost lists over ``n`` nodes."""

    table: Table  # key -> node
    links: np.ndarray  # int32 [2 * (n + lists)]
    key: np.ndarray  # int64 [n]
    size: np.ndarray  # int64 [n]
    tag: np.ndarray  # int64 [n]
    value: np.ndarray  # float64 [n]
    where: np.ndarray  # int8 [n], the list that holds the node, -1 when free
    free: np.ndarray  # int32 [n], stack of free nodes
    free_count: np.ndarray  # int64 [1]
    counts: np.ndarray  # int64 [lists], nodes in each list
    units: np.ndarray  # int64 [lists], sum of sizes in each list


def make_ghosts(n: int, lists: int = 1) -> Ghosts:
    """Return ``lists`` empty ghost lists that share ``max(n, 1)`` nodes."""
    n = max(int(n), 1)
    return Ghosts(
        table=make_table(n),
        links=make_links(n, lists),
        key=np.zeros(n, np.int64),
        size=np.zeros(n, np.int64),
        tag=np.zeros(n, np.int64),
        value=np.zeros(n, np.float64),
        where=np.full(n, -1, np.int8),
        free=np.arange(n, dtype=np.int32)[::-1].copy(),
        free_count=np.array([n], np.int64),
        counts=np.zeros(lists, np.int64),
        units=np.zeros(lists, np.int64),
    )


@kernel
def ghost_find(g, key):
    """Return the node that remembers ``key``, or -1; its list is ``g.where[node]``."""
    return table_get(g.table, key)


@kernel
def ghost_oldest(g, which):
    """Return the oldest node of list ``which``, or -1 when it is empty."""
    node = back(g.links, g.key.size + which)
    return node if node < g.key.size else np.int32(-1)


@kernel
def ghost_drop(g, node):
    """Forget ``node``."""
    which = g.where[node]
    unlink(g.links, node)
    table_pop(g.table, g.key[node])
    g.counts[which] -= 1
    g.units[which] -= g.size[node]
    g.where[node] = -1
    g.free[g.free_count[0]] = node
    g.free_count[0] += 1


@kernel
def ghost_add(g, which, key, size):
    """Remember ``key`` at the newest end of list ``which``, moving it when known; return its node."""
    known = table_get(g.table, key)
    if known >= 0:
        ghost_drop(g, known)
    if g.free_count[0] == 0:
        oldest = ghost_oldest(g, which)
        other = 0
        while oldest < 0:
            oldest = ghost_oldest(g, other)
            other += 1
        ghost_drop(g, oldest)
    g.free_count[0] -= 1
    node = g.free[g.free_count[0]]
    g.key[node] = key
    g.size[node] = size
    g.tag[node] = 0
    g.value[node] = 0.0
    g.where[node] = which
    push_front(g.links, g.key.size + which, node)
    table_put(g.table, key, node)
    g.counts[which] += 1
    g.units[which] += size
    return node
