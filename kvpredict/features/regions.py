"""Regions: what happened to keys near an object's own, for keys whose order means something.

Block numbers, offsets, and ids handed out in order of creation: objects with neighbouring keys are used together, so a
region that is being read again tells of members not yet reached, and a region that was only ever scanned tells of new
ones. A region is a run of 8, 64 or 1,024 keys, counted in the lowest bit in which keys differ at all. Runs of 64, each
with its runs of 8, and runs of 1,024 have a table, addressed by hash, in which a newcomer takes the place of what was
there, so memory is bounded by capacity. Where keys are hashes every region has one member, and rows say nothing new.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.jit import lean_kernel
from kvpredict.core.prefetch import prefetch
from kvpredict.core.rows import make_rows
from kvpredict.core.table import hash_key
from kvpredict.features.facts import FACTS, KEY, LAST
from kvpredict.features.schema import REGION_FEATURES, REGION_SIZES

__all__ = ["Regions", "await_visit", "make_regions", "visit", "write_regions"]

LEVELS = len(REGION_SIZES)
SMALL, LARGE, HUGE = (size.bit_length() - 1 for size in REGION_SIZES)
PARTS = 1 << (LARGE - SMALL)  # runs of 8 in one of 64
NUMBER, WHOLE = 0, 1  # columns of both tables: the LOW bits of a run's number; what is known of it
LOW = 2**31 - 1
LATEST, KNOWN, RATE, EACH = 0, 1, 2, 3  # of which a run has so many numbers, those of its parts behind its own
DIFFERING, ANY, LOWEST = 0, 1, 2  # of Regions.bits
WEIGHT = 0.1  # of the newest access in a region's share of known keys


class Regions(NamedTuple):
    """State over ``r`` places, a power of two or none, in each of two tables.

    Of a run they tell its last access, the LOW bits of its number; the share of accesses to keys remembered; and
    a count that decays, as of the last access, 0 where there was none: the latter two are float32s, bit by bit, so that
    what is looked up together lies together.
    """

    large: np.ndarray  # int32 [r, 32], two cache lines a run of 64 keys
    huge: np.ndarray  # int32 [r, 4], of 1,024
    bits: np.ndarray  # int64 [3]: bits in which keys differ; some key; the lowest bit that differs


def make_regions(slots: int) -> Regions:
    """Return empty tables for a cache of ``slots`` objects; with 0 they have no places, and nothing is recorded."""
    r = 1 << max(int(slots - 1).bit_length(), 3) if slots else 0
    wide = 1 << (EACH * (1 + PARTS)).bit_length()
    return Regions(make_rows((r, wide), np.int32), make_rows((r, 1 + EACH), np.int32), np.array([0, 0, 40], np.int64))


@lean_kernel
def visit(g, key, known, now, unit):
    """Record access number ``now``, to ``key``; ``known``: 1.0 if it was remembered, else 0.0; ``unit`` in requests."""
    if len(g.large) == 0:
        return
    if now == 1:
        g.bits[ANY] = key
    if (key ^ g.bits[ANY]) & ~g.bits[DIFFERING]:
        _differ(g, key)
    run = key >> g.bits[LOWEST]
    at = _claim(g.large, run >> LARGE)
    _count(g.large, at, WHOLE, known, now, unit)
    _count(g.large, at, _part(run), known, now, unit)
    _count(g.huge, _claim(g.huge, run >> HUGE), WHOLE, known, now, unit)


@lean_kernel
def await_visit(g, key):
    """Prefetch what an access to ``key`` is recorded in."""
    if len(g.large) > 0:
        run = key >> g.bits[LOWEST]
        prefetch(g.large, _place(g.large, run >> LARGE))
        prefetch(g.huge, _place(g.huge, run >> HUGE))


@lean_kernel
def _part(run):
    """Return where in a row of 64 keys it says what is known of the run of 8 that this one is of."""
    return WHOLE + EACH * (1 + ((run >> SMALL) & (PARTS - 1)))


@lean_kernel
def _place(table, number):
    return hash_key(number) & (len(table) - 1)


@lean_kernel
def _claim(table, number):
    """Return the place of a run, which is its own from now on."""
    at = _place(table, number)
    if table[at, NUMBER] != number & LOW:
        table[at, NUMBER] = number & LOW
        for j in range(WHOLE + RATE, table.shape[1], EACH):
            table[at, j] = 0
    return at


@lean_kernel
def _count(table, at, j, known, now, unit):
    """Count an access to the run of which it is known from column ``j`` on."""
    rate = np.float64(np.int32(table[at, j + RATE]).view(np.float32))
    share = known
    if rate > 0.0:
        share = np.float64(np.int32(table[at, j + KNOWN]).view(np.float32))
        share += WEIGHT * (known - share)
        rate *= half_lives(_since(table, at, j, now) / unit)
    table[at, j + LATEST] = now & LOW
    table[at, j + KNOWN] = np.float32(share).view(np.int32)
    table[at, j + RATE] = np.float32(1.0 + rate).view(np.int32)


@lean_kernel
def _since(table, at, j, now):
    """Return how many requests ago the last access was, if it was one of the last 2**31."""
    return (now - np.int64(table[at, j + LATEST])) & LOW


@lean_kernel
def _differ(g, key):
    """Take note of bits that were the same in all keys so far; with a new lowest one, regions are other keys."""
    bits = g.bits
    bits[DIFFERING] |= key ^ bits[ANY]
    lowest = 0
    while lowest < bits[LOWEST] and not (bits[DIFFERING] >> lowest) & 1:
        lowest += 1
    if lowest < bits[LOWEST]:
        bits[LOWEST] = lowest
        for table in (g.large, g.huge):
            for at in range(len(table)):
                for j in range(WHOLE + RATE, table.shape[1], EACH):
                    table[at, j] = 0


@lean_kernel
def write_regions(g, fact, entries, count, now, per_unit, out, j):
    """Write the features of the first ``count`` of ``entries`` to ``out[:, j:]``.

    ``fact`` is what a history keeps of each entry (``features.facts``).
    """
    if len(g.large) == 0:
        for k in range(LEVELS * len(REGION_FEATURES)):
            for i in range(count):
                out[i, j + k] = 0.0
        return
    large, huge, lowest, width = g.large, g.huge, g.bits[LOWEST], len(REGION_FEATURES)
    for i in range(count):
        run = fact[FACTS * entries[i] + KEY] >> lowest
        age = now - fact[FACTS * entries[i] + LAST]
        number = run >> LARGE
        at = _place(large, number)
        _gather(large, at, _part(run), number, now, age, out, i, j)
        _gather(large, at, WHOLE, number, now, age, out, i, j + width)
        number = run >> HUGE
        _gather(huge, _place(huge, number), WHOLE, number, now, age, out, i, j + 2 * width)
    for _ in range(LEVELS):  # apart from the above, so that it runs on several rows at once
        for i in range(count):
            # Nothing is read on a condition: that would be one row after the other.
            last, age = np.float64(out[i, j]), np.float64(out[i, j + 1])
            share, rate = out[i, j + 2], np.float64(out[i, j + 3])
            since = last if rate > 0.0 else age
            out[i, j] = since * per_unit
            out[i, j + 1] = max(age - since, 0.0) * per_unit
            out[i, j + 2] = share if rate > 0.0 else np.float32(-1.0)
            out[i, j + 3] = rate * half_lives(since * per_unit)
        j += width


@lean_kernel
def _gather(table, at, k, number, now, age, out, i, j):
    """Write what is known from column ``k`` on to ``out[i, j:]``, times in requests; a count of 0.0: nothing is."""
    mine = np.float32(table[at, NUMBER] == (number & LOW))
    out[i, j] = _since(table, at, k, now)
    out[i, j + 1] = age
    out[i, j + 2] = np.int32(table[at, k + KNOWN]).view(np.float32)
    out[i, j + 3] = mine * np.int32(table[at, k + RATE]).view(np.float32)
