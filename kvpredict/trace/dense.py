"""Dense ids: number the distinct keys of a trace 0, 1, 2, … in order of first appearance, in one compiled pass.

Replay then maps id to slot by plain indexing. Keys whose range is narrow (block numbers, ranks) are numbered through
a direct table, others through a hash table that doubles as it fills. The hash table is read for a block of requests
before any of them is resolved, so that the processor waits for many cache lines at once and not for one after another.
"""

import numpy as np

from kvpredict.core.jit import kernel

__all__ = ["dense_ids", "next_uses"]

BLOCK = 256  # requests whose cells are fetched together
_LOW = 0xFFFFFFFF


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
        unique = _by_hash(keys, ids)
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


def _by_hash(keys: np.ndarray, ids: np.ndarray) -> int:
    # Arrays grow here and not in the kernel: NumPy asks for huge pages, which random access needs.
    cells = np.full(1 << 16, -1, np.int32)  # id in each cell
    names = np.empty(cells.size // 2, np.int64)  # key of each id
    done = unique = 0
    while True:
        done, unique = _hashed(keys, ids, done, unique, cells, names, np.empty(BLOCK, np.int64))
        if done == keys.size:
            return int(unique)
        cells = np.full(2 * cells.size, -1, np.int32)
        names = np.concatenate((names, np.empty_like(names)))
        _place_again(names, unique, cells)


@kernel
def _cell(key, mask):
    """Return the cell in which to look for ``key`` first; every product and the sum stay below 2**63."""
    x = (key & _LOW) * 0x2C1B3C6D + ((key >> 32) & _LOW) * 0x165667B1
    return (x ^ (x >> 29)) & mask


@kernel
def _place_again(names, unique, cells):
    mask = cells.size - 1
    for i in range(unique):
        cell = _cell(names[i], mask)
        while cells[cell] >= 0:
            cell = (cell + 1) & mask
        cells[cell] = i


@kernel
def _hashed(keys, ids, start, unique, cells, names, home):
    """Number keys from ``start`` on until they end or another block could fill half of the cells."""
    mask = cells.size - 1
    while start < keys.size and unique + home.size <= names.size:
        end = min(start + home.size, keys.size)
        for i in range(start, end):
            cell = _cell(keys[i], mask)
            home[i - start] = cell
            ids[i] = cells[cell]
        for i in range(start, end):
            key = keys[i]
            known = ids[i]
            if known >= 0 and names[known] == key:
                continue
            # Not in its first cell, or new since the block was fetched.
            cell = home[i - start]
            known = cells[cell]
            while known >= 0 and names[known] != key:
                cell = (cell + 1) & mask
                known = cells[cell]
            if known < 0:
                known = np.int32(unique)
                cells[cell] = known
                names[unique] = key
                unique += 1
            ids[i] = known
        start = end
    return start, unique


@kernel
def _next_uses(ids, last):
    uses = np.empty(ids.size, np.float64)
    for i in range(ids.size - 1, -1, -1):
        uses[i] = last[ids[i]]
        last[ids[i]] = i
    return uses
