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
from kvpredict.core.rows import make_rows
from kvpredict.core.table import hash_key
from kvpredict.features.facts import FACTS, KEY, LAST
from kvpredict.features.schema import REGION_FEATURES, REGION_SIZES

__all__ = ["Regions", "make_regions", "visit", "write_regions"]

LEVELS = len(REGION_SIZES)
SHIFTS = tuple(size.bit_length() - 1 for size in REGION_SIZES)
NAME, LATEST, KNOWN, RATE = 0, 1, 2, 3  # columns of Regions.place
NAMES = (1 << 53) - 1  # a region's number is cut to what a float holds exactly
DIFFERING, ANY, LOWEST = 0, 1, 2  # of Regions.bits
WEIGHT = 0.1  # of the newest access in a region's share of known keys


class Regions(NamedTuple):
    """State over ``r`` places, a power of two or none, at each level."""

    place: np.ndarray  # float64 [3, r, 4], two to a cache line: the region's number; its last access, 0 while the place
    # is empty; share of accesses to keys remembered; decayed count as of the last access, both to float32's precision
    bits: np.ndarray  # int64 [3]: bits in which keys differ; some key; the lowest bit that differs


def make_regions(slots: int) -> Regions:
    """Return empty tables for a cache of ``slots`` objects; with 0 they have no places, and nothing is recorded."""
    r = 1 << max(int(slots - 1).bit_length(), 3) if slots else 0
    return Regions(make_rows((LEVELS, r, 4), np.float64), np.array([0, 0, 40], np.int64))


@lean_kernel
def visit(g, key, known, now, unit):
    """Record access number ``now``, to ``key``; ``known``: 1.0 if it was remembered, else 0.0; ``unit`` in requests."""
    place = g.place
    if place.shape[1] == 0:
        return
    if now == 1:
        g.bits[ANY] = key
    if (key ^ g.bits[ANY]) & ~g.bits[DIFFERING]:
        _differ(g, key)
    for i in range(LEVELS):
        number = key >> (SHIFTS[i] + g.bits[LOWEST])
        name = np.float64(number & NAMES)
        at = hash_key(number) & (place.shape[1] - 1)
        if place[i, at, NAME] != name or place[i, at, LATEST] == 0.0:
            place[i, at, NAME] = name
            place[i, at, KNOWN] = known
            place[i, at, RATE] = 1.0
        else:
            share = place[i, at, KNOWN]
            since = now - place[i, at, LATEST]
            place[i, at, KNOWN] = np.float32(share + WEIGHT * (known - share))
            place[i, at, RATE] = np.float32(1.0 + place[i, at, RATE] * half_lives(since / unit))
        place[i, at, LATEST] = now


@lean_kernel
def _differ(g, key):
    """Take note of bits that were the same in all keys so far; with a new lowest one, regions are other keys."""
    bits, place = g.bits, g.place
    bits[DIFFERING] |= key ^ bits[ANY]
    lowest = 0
    while lowest < bits[LOWEST] and not (bits[DIFFERING] >> lowest) & 1:
        lowest += 1
    if lowest < bits[LOWEST]:
        bits[LOWEST] = lowest
        for i in range(LEVELS):
            for at in range(place.shape[1]):
                place[i, at, LATEST] = 0.0


@lean_kernel
def write_regions(g, fact, entries, count, now, per_unit, out, j):
    """Write the features of the first ``count`` of ``entries`` to ``out[:, j:]``.

    ``fact`` is what a history keeps of each entry (``features.facts``).
    """
    place = g.place
    if place.shape[1] == 0:
        for k in range(LEVELS * len(REGION_FEATURES)):
            for i in range(count):
                out[i, j + k] = 0.0
        return
    for k in range(LEVELS):
        shift = SHIFTS[k] + g.bits[LOWEST]
        for i in range(count):
            entry = entries[i]
            number = fact[FACTS * entry + KEY] >> shift
            at = hash_key(number) & (place.shape[1] - 1)
            last = np.float64(fact[FACTS * entry + LAST])
            latest = place[k, at, LATEST]
            share = place[k, at, KNOWN]
            rate = place[k, at, RATE]
            # 0.0: another region has taken the place. Multiplied by it, so that no branch has to be guessed.
            mine = np.float64((place[k, at, NAME] == np.float64(number & NAMES)) & (latest > 0.0))
            out[i, j] = now - last - mine * (latest - last)
            out[i, j + 1] = mine * max(latest - last, 0.0)
            out[i, j + 2] = mine * share - (1.0 - mine)
            out[i, j + 3] = mine * rate
        j += len(REGION_FEATURES)
    for _ in range(LEVELS):  # apart from the above, so that it runs on several rows at once
        j -= len(REGION_FEATURES)
        for i in range(count):
            since = np.float64(out[i, j]) * per_unit
            out[i, j] = since
            out[i, j + 1] = np.float64(out[i, j + 1]) * per_unit
            out[i, j + 3] *= half_lives(since)
