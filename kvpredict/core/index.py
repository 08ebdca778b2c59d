"""A bounded index from int64 keys to the rows that hold them, for policies that look a ghost up at every miss.

Open addressing with linear probing, like ``core.table``, and backward-shift deletion; a cell is one int64: 31 bits
of the key's hash above the row's number plus one, 0 when free. Eight cells share a cache line, and a look-up reads a
row only where the hash matches. The key of row ``i`` is ``rows[width * i]``.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.prefetch import prefetch
from kvpredict.core.table import hash_key

__all__ = ["check_index", "index_await", "index_drop", "index_get", "index_guess", "index_put", "make_index"]

_LOW = 0xFFFFFFFF


def make_index(n: int) -> np.ndarray:
    """Return an empty index for at most ``n`` keys, int64 ``[m]``, ``m`` a power of two, at most half full."""
    return np.zeros(1 << max(3, int(2 * n - 1).bit_length()), np.int64)


@lean_kernel
def index_get(cells, rows, width, key):
    """Return the row of ``key``, or -1."""
    mask = cells.size - 1
    h = hash_key(key) >> 1
    i = h & mask
    cell = cells[i]
    while cell != 0:
        row = (cell & _LOW) - 1
        if cell >> 32 == h and rows[width * row] == key:
            return row
        i = (i + 1) & mask
        cell = cells[i]
    return np.int64(-1)


@lean_kernel
def _home(cells, key):
    """Return the cell where the search for ``key`` begins."""
    return (hash_key(key) >> 1) & (cells.size - 1)


@lean_kernel
def index_await(cells, key):
    """Prefetch where ``key`` is or will be put."""
    prefetch(cells, _home(cells, key))


@lean_kernel
def index_guess(cells, key):
    """Return the row of ``key`` if its cell is the first to look at; else any other's, or -1."""
    return (cells[_home(cells, key)] & _LOW) - 1


@lean_kernel
def index_put(cells, key, row):
    """Add ``key``, which is not there yet, as the key of ``row``."""
    mask = cells.size - 1
    h = hash_key(key) >> 1
    i = h & mask
    while cells[i] != 0:
        i = (i + 1) & mask
    cells[i] = (h << 32) | (row + 1)


@lean_kernel
def index_drop(cells, key, row):
    """Delete ``key``, the key of ``row``, which is there."""
    mask = cells.size - 1
    h = hash_key(key) >> 1
    wanted = (h << 32) | (row + 1)
    hole = h & mask
    while cells[hole] != wanted:
        hole = (hole + 1) & mask
    i = (hole + 1) & mask
    cell = cells[i]
    while cell != 0:
        # The cell may move into the hole unless its home lies cyclically after the hole.
        if ((i - (cell >> 32)) & mask) >= ((i - hole) & mask):
            cells[hole] = cell
            hole = i
        i = (i + 1) & mask
        cell = cells[i]
    cells[hole] = 0


def check_index(cells: np.ndarray, rows: np.ndarray, width: int, held: list[int]) -> None:
    """Assert that the index finds exactly the rows ``held``."""
    assert int((cells != 0).sum()) == len(held)
    assert all(index_get(cells, rows, width, int(rows[width * row])) == row for row in held)
