"""Helpers with which policies assert their own invariants (``Policy.validate``)."""

import numpy as np

from kvpredict.core.ghost import Ghosts

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
    """Assert that lists, table, counts and free stack of ghost lists agree."""
    n, lists = g.key.size, g.counts.size
    seen = 0
    for which in range(lists):
        nodes = list_nodes(g.links, n + which)
        assert len(nodes) == g.counts[which]
        assert sum(int(g.size[node]) for node in nodes) == g.units[which]
        assert all(g.where[node] == which for node in nodes)
        seen += len(nodes)
    assert seen + g.free_count[0] == n
    assert int((g.table.values >= 0).sum()) == seen
