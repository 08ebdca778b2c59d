"""Regions: what happened to keys near an object's own, for keys whose order means something.

Block numbers, offsets, and ids handed out in order of creation: objects with neighbouring keys are used together, so a
region that is being read again tells of members not yet reached, and a region that was only ever scanned tells of new
ones. A region is a run of 8, 64 or 1,024 keys, counted in the lowest bit in which keys differ at all. Each level is a
table addressed by hash in which a newcomer takes the place of what was there, so memory is bounded by capacity. Where
keys are hashes every region has one member, and rows say nothing new.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.jit import lean_kernel
from kvpredict.core.table import hash_key
from kvpredict.features.schema import REGION_FEATURES, REGION_SIZES

__all__ = ["Regions", "make_regions", "visit", "write_regions"]

LEVELS = len(REGION_SIZES)
SHIFTS = tuple(size.bit_length() - 1 for size in REGION_SIZES)
NUMBER, LAST = 0, 1  # columns of Regions.access
KNOWN, RATE = 0, 1  # columns of Regions.level
DIFFERING, ANY, LOWEST = 0, 1, 2  # of Regions.bits
WEIGHT = 0.1  # of the newest access in a region's share of known keys


class Regions(NamedTuple):
    """State over ``r`` places, a power of two or none, at each level."""

    access: np.ndarray  # int64 [3, r, 2]: the region's number; its last access, 0 while the place is empty
    level: np.ndarray  # float32 [3, r, 2]: share of accesses to keys remembered; decayed count as of the last access
    bits: np.ndarray  # int64 [3]: bits in which keys differ; some key; the lowest bit that differs


def make_regions(slots: int) -> Regions:
    """Return empty tables for a cache of ``slots`` objects; with 0 they have no places, and nothing is recorded."""
    r = 1 << max(int(slots - 1).bit_length(), 3) if slots else 0
    return Regions(
        np.zeros((LEVELS, r, 2), np.int64), np.zeros((LEVELS, r, 2), np.float32), np.array([0, 0, 40], np.int64)
    )


@lean_kernel
def visit(g, key, known, now, unit):
    """Record access number ``now``, to ``key``; ``known``: 1.0 if it was remembered, else 0.0; ``unit`` in requests."""
    access, level = g.access, g.level
    if access.shape[1] == 0:
        return
    if now == 1:
        g.bits[ANY] = key
    if (key ^ g.bits[ANY]) & ~g.bits[DIFFERING]:
        _differ(g, key)
    for i in range(LEVELS):
        number = key >> (SHIFTS[i] + g.bits[LOWEST])
        at = hash_key(number) & (access.shape[1] - 1)
        if access[i, at, NUMBER] != number or access[i, at, LAST] == 0:
            access[i, at, NUMBER] = number
            level[i, at, KNOWN] = known
            level[i, at, RATE] = 1.0
        else:
            level[i, at, KNOWN] += WEIGHT * (known - level[i, at, KNOWN])
            level[i, at, RATE] = 1.0 + level[i, at, RATE] * half_lives((now - access[i, at, LAST]) / unit)
        access[i, at, LAST] = now


@lean_kernel
def _differ(g, key):
    """Take note of bits that were the same in all keys so far; with a new lowest one, regions are other keys."""
    bits, access = g.bits, g.access
    bits[DIFFERING] |= key ^ bits[ANY]
    lowest = 0
    while lowest < bits[LOWEST] and not (bits[DIFFERING] >> lowest) & 1:
        lowest += 1
    if lowest < bits[LOWEST]:
        bits[LOWEST] = lowest
        for i in range(LEVELS):
            for at in range(access.shape[1]):
                access[i, at, LAST] = 0


@lean_kernel
def write_regions(g, key, last, now, per_unit, out, i, j):
    """Write the features of ``key``, last asked for at request ``last``, to ``out[i, j:]``."""
    access, level = g.access, g.level
    if access.shape[1] == 0:
        for k in range(LEVELS * len(REGION_FEATURES)):
            out[i, j + k] = 0.0
        return
    for k in range(LEVELS):
        number = key >> (SHIFTS[k] + g.bits[LOWEST])
        at = hash_key(number) & (access.shape[1] - 1)
        if access[k, at, NUMBER] == number and access[k, at, LAST] > 0:
            since = (now - access[k, at, LAST]) * per_unit
            out[i, j] = since
            out[i, j + 1] = max(access[k, at, LAST] - last, 0) * per_unit
            out[i, j + 2] = level[k, at, KNOWN]
            out[i, j + 3] = level[k, at, RATE] * half_lives(since)
        else:  # another region has taken the place
            out[i, j] = (now - last) * per_unit
            out[i, j + 1] = 0.0
            out[i, j + 2] = -1.0
            out[i, j + 3] = 0.0
        j += len(REGION_FEATURES)
