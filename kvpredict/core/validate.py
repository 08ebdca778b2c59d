"""Helpers with which policies assert their own invariants (``Policy.validate``)."""

import numpy as np

from kvpredict.core.ghost import Ghosts
from kvpredict.core.index import check_index

__all__ = ["check_ghosts", "list_nodes"]


def list_nodes(links: np.ndarray, sentinel: int) -> list[int]:
    """Return the nodes of a list from front to back, asserting that links agree in both directions."""
    nodes = []
    before, node = sentinel, int(links[2 * sentinel + 1])
    while node != sentinel:
        assert links[2 * node] == before, f"node {node} does not point back to {before}"
        nodes.append(node)
        assert len(nodes) <= links.size, "the list does not close"
        before, node = node, int(links[2 * node + 1])
    assert links[2 * sentinel] == before, "the sentinel does not point to the last node"
    return nodes


def check_ghosts(g: Ghosts) -> None:
    """Assert that lists, index, counts and the chain of free nodes of ghost lists agree."""
    n, lists = g.key.size, g.counts.size
    held: list[int] = []
    for which in range(lists):
        head = n + which
        nodes = []
        node = int(g.older[head])
        while node != head:
            assert g.older[g.newer[node]] == node
            nodes.append(node)
            assert len(nodes) <= n, "the list does not close"
            node = int(g.older[node])
        assert g.newer[head] == (nodes[-1] if nodes else head)
        assert len(nodes) == g.counts[which]
        assert g.size[nodes].sum() == g.units[which]
        assert (g.where[nodes] == which).all()
        held += nodes
    free, node = set(), int(g.free[0])
    while node >= 0:
        assert node not in free, "the chain of free nodes does not end"
        free.add(node)
        assert g.where[node] == -1
        node = int(g.older[node])
    assert len(free) == g.free_count[0] == n - len(held)
    check_index(g.cells, g.key, 1, held)
