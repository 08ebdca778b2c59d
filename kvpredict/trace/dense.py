"""Dense ids: number the distinct keys of a trace 0, 1, 2, … in order of first appearance, in one compiled pass.

Replay then maps id to slot by plain indexing. Keys whose range is narrow (block numbers, ranks) are numbered through
a direct table, others through a hash table that doubles as it fills.
"""

import numpy as np

from kvpredict.core.jit import kernel
from kvpredict.core.table import hash_key

__all__ = ["dense_ids", "next_uses"]


def dense_ids(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the dense id of each key, int32 ``[n]``, and how many distinct keys there are.

    >>> ids, unique = dense_ids(np.array([7, 9, 7, -1]))
    >>> ids.tolist(), unique
    ([0, 1, 0, 2], 3)
    """
    keys = np.ascontiguousarray(keys, np.int64)
    ids = np.empty(keys.size, np.int32)
    if keys.size == 0:
        return ids, 0
    low, high = _extent(keys)
    # Python integers: the range of int64 keys does not fit an int64.
    if int(high) - int(low) < max(4 * keys.size, 1 << 16):
        unique = _direct(keys, low, np.full(int(high) - int(low) + 1, -1, np.int32), ids)
    else:
        unique = _hashed(keys, ids)
    return ids, int(unique)


def next_uses(ids: np.ndarray, unique: int) -> np.ndarray:
    """Return for each request the index of the next one for the same key, float64 ``[n]``; ``inf`` for none."""
    return _next_uses(ids, np.full(unique, np.inf))


@kernel
def _extent(keys):
    low = keys[0]
    high = keys[0]
    for i in range(keys.size):
        low = min(low, keys[i])
        high = max(high, keys[i])
    return low, high


@kernel
def _direct(keys, low, table, ids):
    unique = 0
    for i in range(keys.size):
        known = table[keys[i] - low]
        if known < 0:
            known = unique
            table[keys[i] - low] = known
            unique += 1
        ids[i] = known
    return unique


@kernel
def _hashed(keys, ids):
    mask = (1 << 16) - 1
    cells = np.full(mask + 1, -1, np.int32)  # id in each cell
    names = np.empty(mask + 1, np.int64)  # its key
    unique = 0
    for i in range(keys.size):
        key = keys[i]
        cell = hash_key(key) & mask
        while cells[cell] >= 0 and names[cell] != key:
            cell = (cell + 1) & mask
        if cells[cell] < 0:
            if 2 * unique > mask:
                mask = 2 * mask + 1
                wider = np.full(mask + 1, -1, np.int32)
                wider_names = np.empty(mask + 1, np.int64)
                for old in range(cells.size):
                    if cells[old] >= 0:
                        cell = hash_key(names[old]) & mask
                        while wider[cell] >= 0:
                            cell = (cell + 1) & mask
                        wider[cell] = cells[old]
                        wider_names[cell] = names[old]
                cells, names = wider, wider_names
                cell = hash_key(key) & mask
                while cells[cell] >= 0:
                    cell = (cell + 1) & mask
            cells[cell] = unique
            names[cell] = key
            unique += 1
        ids[i] = cells[cell]
    return unique


@kernel
def _next_uses(ids, last):
    uses = np.empty(ids.size, np.float64)
    for i in range(ids.size - 1, -1, -1):
        uses[i] = last[ids[i]]
        last[ids[i]] = i
    return uses
