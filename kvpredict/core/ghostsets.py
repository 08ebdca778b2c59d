"""Ghost sets: an unordered memory of evicted keys, with a number for each, bounded in entries.

Leaner than ``core.ghost`` where neither order nor exact bounds matter: laid out like a processor's cache, with no list
and no index, so that a miss touches three or four cache lines. Every key has a set of seven places; where none is free,
the key with the lowest number goes, of equals the next one in turn.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.prefetch import prefetch
from kvpredict.core.rows import make_rows
from kvpredict.core.table import hash_key

__all__ = ["NOTHING", "WAYS", "GhostSets", "check_ghost_sets", "make_ghost_sets", "set_add", "set_await", "set_take"]

WAYS = 7
NOTHING = -np.inf  # the number of no key


class GhostSets(NamedTuple):
    """State of ``s`` sets."""

    key: np.ndarray  # int64 [s, 8], a cache line a set: seven keys, and the place whose turn it is
    value: np.ndarray  # float64 [s, 8], their numbers, NOTHING where no key is


def make_ghost_sets(n: int) -> GhostSets:
    """Return empty sets for at least ``n`` keys, and for fewer than ``n`` + 7."""
    sets = max(1, -(-int(n) // WAYS))
    value = make_rows((sets, WAYS + 1), np.float64)
    value[:] = NOTHING
    return GhostSets(make_rows((sets, WAYS + 1)), value)


@lean_kernel
def _set(g, key):
    return (hash_key(key) * len(g.key)) >> 32


@lean_kernel
def set_await(g, key):
    """Prefetch where ``key`` is looked up, or will be remembered."""
    at = _set(g, key)
    prefetch(g.key, at)
    prefetch(g.value, at)


@lean_kernel
def set_take(g, key):
    """Forget ``key``; return its number, or ``NOTHING``."""
    at = _set(g, key)
    for way in range(WAYS):
        if g.key[at, way] == key and g.value[at, way] > NOTHING:
            value = g.value[at, way]
            g.value[at, way] = NOTHING
            return value
    return NOTHING


@lean_kernel
def set_add(g, key, value):
    """Remember ``key``, which is not there, with a finite ``value``; where its set is full, another goes."""
    at = _set(g, key)
    way = 0
    while way < WAYS and g.value[at, way] > NOTHING:
        way += 1
    if way == WAYS:
        turn = g.key[at, WAYS]
        g.key[at, WAYS] = (turn + 1) % WAYS
        way = turn
        for i in range(1, WAYS):
            other = (turn + i) % WAYS
            if g.value[at, other] < g.value[at, way]:
                way = other
    g.key[at, way] = key
    g.value[at, way] = value


def check_ghost_sets(g: GhostSets) -> list[int]:
    """Assert that each key is in its own set, once; return the keys, sorted. For tests."""
    assert ((g.key[:, WAYS] >= 0) & (g.key[:, WAYS] < WAYS)).all()
    sets, ways = np.nonzero(g.value[:, :WAYS] > NOTHING)
    keys = g.key[sets, ways]
    assert all(_set(g, key) == at for key, at in zip(keys, sets, strict=True))
    assert len(np.unique(keys)) == len(keys)
    return sorted(keys.tolist())
