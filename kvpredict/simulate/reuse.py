"""Reuse distances, and from them LRU's misses at every capacity in one pass.

The reuse distance of a request is the number of distinct keys asked for since the key's last request. LRU of capacity
C holds exactly the C keys used last, so a request hits if and only if its distance is below C: one histogram of the
distances holds the whole miss-ratio curve (Mattson, Gecsei, Slutz, Traiger, "Evaluation techniques for storage
hierarchies", IBM Systems Journal 9(2), 1970). Distances come from a Fenwick tree over the order of last uses (after
Bennett and Kruskal, 1975), renumbered when full, so memory goes with the keys and not with the requests.
"""

import numpy as np

from kvpredict.core.jit import kernel

__all__ = ["reuse_distances"]


def reuse_distances(ids: np.ndarray, unique: int) -> np.ndarray:
    """Return each request's reuse distance, int32 ``[n]``; -1 for the first request of a key.

    Parameters
    ----------
    ids : int32 array [n]
        Dense ids of the keys (``Trace.ids``).
    unique : int
        Number of distinct keys.

    >>> reuse_distances(np.array([0, 1, 0, 2, 1, 1]), 3).tolist()
    [-1, -1, 1, -1, 2, 0]
    """
    width = max(2 * unique, 64)
    distances = np.empty(ids.size, np.int32)
    _distances(
        ids, np.full(unique, -1, np.int32), np.full(width, -1, np.int32), np.zeros(width + 1, np.int32), distances
    )
    return distances


@kernel
def _distances(ids, last, key_at, tree, distances):
    # Place p of the order holds key_at[p], or -1; the tree counts places held: tree[i] sums (i - (i & -i), i].
    width = key_at.size
    at = 0
    held = 0
    for i in range(ids.size):
        if at == width:
            at = _compact(last, key_at, tree)
        key = ids[i]
        place = last[key]
        if place < 0:
            distances[i] = -1
            held += 1
        else:
            older = 0
            j = place + 1
            while j > 0:
                older += tree[j]
                j -= j & -j
            distances[i] = held - older
            key_at[place] = -1
            j = place + 1
            while j <= width:
                tree[j] -= 1
                j += j & -j
        last[key] = at
        key_at[at] = key
        j = at + 1
        while j <= width:
            tree[j] += 1
            j += j & -j
        at += 1


@kernel
def _compact(last, key_at, tree):
    """Close the gaps in the order and rebuild the tree; return the first free place."""
    width = key_at.size
    at = 0
    for place in range(width):
        key = key_at[place]
        if key >= 0:
            key_at[place] = -1
            key_at[at] = key
            last[key] = at
            at += 1
    for i in range(1, width + 1):
        tree[i] = 1 if i <= at else 0
    for i in range(1, width + 1):
        above = i + (i & -i)
        if above <= width:
            tree[above] += tree[i]
    return at
