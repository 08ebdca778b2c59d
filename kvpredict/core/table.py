"""A bounded hash table from int64 keys to int32 values: open addressing, linear probing.

The prefix cache keeps its sessions in it; ghosts and histories, whose rows hold the key, have ``core.index``. It never
grows: it is made for at most ``n`` keys and runs at most half full, so a look-up touches one or two cache lines.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = ["Table", "hash_key", "make_table", "table_get", "table_put"]

_MASK = 0xFFFFFFFF


class Table(NamedTuple):
    """``keys`` int64 ``[m]``, ``values`` int32 ``[m]`` (-1 marks a free cell); ``m`` is a power of two."""

    keys: np.ndarray
    values: np.ndarray


def make_table(n: int) -> Table:
    """Return an empty table for at most ``n`` keys."""
    cells = 1 << max(3, int(2 * n - 1).bit_length())
    return Table(np.zeros(cells, np.int64), np.full(cells, -1, np.int32))


@lean_kernel
def hash_key(key):
    """Mix an int64 key to ``[0, 2**32)``; every product stays below 2**63, so both worlds agree."""
    x = (key ^ (key >> 32)) & _MASK
    y = (key >> 32) & _MASK
    x = (x * 0x45D9F3B + y) & _MASK
    x ^= x >> 16
    x = (x * 0x45D9F3B) & _MASK
    x ^= x >> 15
    x = (x * 0x2C1B3C6D) & _MASK
    x ^= x >> 16
    return x


@lean_kernel
def table_get(table, key):
    """Return the value of ``key``, or -1."""
    mask = table.values.size - 1
    i = hash_key(key) & mask
    while table.values[i] >= 0:
        if table.keys[i] == key:
            return table.values[i]
        i = (i + 1) & mask
    return np.int32(-1)


@lean_kernel
def table_put(table, key, value):
    """Set ``key`` to ``value`` (not negative)."""
    mask = table.values.size - 1
    i = hash_key(key) & mask
    while table.values[i] >= 0 and table.keys[i] != key:
        i = (i + 1) & mask
    table.keys[i] = key
    table.values[i] = value
