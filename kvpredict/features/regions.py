"""Regions: what happened to keys near an object's own, for keys whose order means something.

Block numbers, offsets, and ids handed out in order of creation: objects with neighbouring keys are used together, so a
region that is being read again tells of members not yet reached, and a region that was only ever scanned tells of new
ones. A region at level ``l`` is a run of keys that agree in all but their lowest ``SHIFTS[l]`` bits, counted from the
lowest bit that varies at all. Each level is a table addressed by hash in which a newcomer takes the place of what was
there, so memory is bounded by capacity. Where keys are hashes every region has one member, and rows say nothing new.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.jit import lean_kernel

__all__ = ["LEVELS", "REGION_FEATURES", "Regions", "make_regions", "visit", "write_regions"]

SHIFTS = (3, 6, 10)
LEVELS = len(SHIFTS)
REGION_FEATURES = 4  # a level
TAG, LAST = 0, 1  # columns of Regions.tag
KNOWN, RATE = 0, 1  # columns of Regions.level
WEIGHT = 0.1  # of the newest access in a region's share of known keys
MULTIPLIER = np.int64(-7046029254386353131)  # 2**64 / golden ratio


class Regions(NamedTuple):
    """State over ``r`` places, a power of two, at each level."""

    tag: np.ndarray  # int64 [3, r, 2]: the region's number, its last access (0: none, the place is empty)
    level: np.ndarray  # float32 [3, r, 2]: share of accesses to keys remembered, decayed count as of the last access
    varies: np.ndarray  # int64 [3]: bits in which keys differ; some key; the lowest bit that varies


def make_regions(slots: int) -> Regions:
    """Return empty tables for a cache of ``slots`` objects."""
    r = 1 << max(int(slots - 1).bit_length(), 3)
    return Regions(
        np.zeros((LEVELS, r, 2), np.int64), np.zeros((LEVELS, r, 2), np.float32), np.array([0, 0, 63], np.int64)
    )


@lean_kernel
def _place(number, r):
    x = number * MULTIPLIER
    return (x ^ (x >> 29)) & (r - 1)


@lean_kernel
def visit(g, key, known, now, unit):
    """Record an access to ``key``; ``known`` is 1.0 if the key was remembered, else 0.0; ``unit`` in requests."""
    tag, level, varies = g.tag, g.level, g.varies
    if now == 1:
        varies[1] = key
    new = (key ^ varies[1]) & ~varies[0]
    if new:
        varies[0] |= new
        lowest = 0
        while not (varies[0] >> lowest) & 1:
            lowest += 1
        if lowest < varies[2]:  # regions so far were of other keys
            varies[2] = lowest
            for l in range(LEVELS):
                for i in range(tag.shape[1]):
                    tag[l, i, 1] = 0
    for l in range(LEVELS):
        number = key >> (SHIFTS[l] + varies[2])
        at = _place(number, tag.shape[1])
        if tag[l, at, TAG] != number or tag[l, at, LAST] == 0:
            tag[l, at, TAG] = number
            level[l, at, KNOWN] = known
            level[l, at, RATE] = 1.0
        else:
            level[l, at, KNOWN] += WEIGHT * (known - level[l, at, KNOWN])
            level[l, at, RATE] = 1.0 + level[l, at, RATE] * half_lives((now - tag[l, at, LAST]) / unit)
        tag[l, at, LAST] = now


@lean_kernel
def write_regions(g, key, last, now, per_unit, out, i, j):
    """Write the features of ``key``, last asked for at ``last``, to ``out[i, j:]``."""
    tag, level, base = g.tag, g.level, g.varies[2]
    for l in range(LEVELS):
        number = key >> (SHIFTS[l] + base)
        at = _place(number, tag.shape[1])
        if tag[l, at, TAG] == number and tag[l, at, LAST] > 0:
            since = (now - tag[l, at, LAST]) * per_unit
            out[i, j] = since
            out[i, j + 1] = max(tag[l, at, LAST] - last, np.int64(0)) * per_unit
            out[i, j + 2] = level[l, at, KNOWN]
            out[i, j + 3] = level[l, at, RATE] * half_lives(since)
        else:
            out[i, j] = (now - last) * per_unit
            out[i, j + 1] = 0.0
            out[i, j + 2] = -1.0
            out[i, j + 3] = 0.0
        j += REGION_FEATURES
