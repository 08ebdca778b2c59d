"""History: what a learned policy remembers of keys, and the only code that turns it into feature rows.

An entry holds a key's last gaps, decayed counts and times. Residents always have one; evicted keys keep theirs in
the order of eviction until the table is full, so memory is bounded by capacity and never by the number of keys.
Training and serving both run ``observe`` and ``write`` inside the policy, which leaves no room for skew between them.

Time is counted in requests that the cache has seen and written in units of the cache's own residence time
T = (objects held) x (mean number of requests between misses), by Little's law. So a model carries over between
cache sizes and traces.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.index import index_await, index_drop, index_get, index_guess, index_put, make_index
from kvpredict.core.jit import lean_kernel
from kvpredict.core.lists import back, make_links, newer, push_front, unlink
from kvpredict.core.prefetch import prefetch
from kvpredict.core.rows import make_rows
from kvpredict.features.facts import EVICTED, FACTS, FIRST, INSERTED, KEY, LAST
from kvpredict.features.regions import Regions, make_regions, visit, write_regions
from kvpredict.features.schema import BASE_FEATURES, MISSING, OWN_FEATURES

__all__ = [
    "History",
    "await_entry",
    "await_forgetting",
    "await_key",
    "forget",
    "likely_entry",
    "make_history",
    "note_eviction",
    "note_hit",
    "note_insertion",
    "note_miss",
    "oldest_ghost",
    "residence_known",
    "residence_time",
    "spare",
    "write",
]

GAPS, RATES, COUNT, VISITS, RETURNS, ABSENCE, NOVELTY, MISSES, WEIGHT = 0, 4, 9, 10, 11, 12, 13, 14, 15  # of row
NOW, HELD, PREVIOUS, LEFT, FREE, KNOWN = 0, 1, 2, 3, 4, 5  # of clock
SPACING, NOVEL, MISSED, MEAN_SIZE, BY_MISS, BY_REQUEST = 0, 1, 2, 3, 4, 5  # of level
WIDTH = len(BASE_FEATURES)
LEAST_KNOWN = 0.05  # share of requests to keys remembered, at least, so that T is never nothing


class History(NamedTuple):
    """State over ``n`` entries, ``k`` extra columns."""

    cells: np.ndarray  # int64, index from key to entry
    links: np.ndarray  # int32 [2 * (n + 1)], entries of evicted keys, last evicted in front
    fact: np.ndarray  # int64 [8 * n], a cache line an entry: key, last access, first access, insertion, eviction (0:
    # none yet); for the policy to fill in size as of the last miss, place among residents, newest waiting sample
    row: np.ndarray  # float32 [n, 16], a cache line an entry: gaps in requests, counts as of the last access
    regions: Regions
    extra: np.ndarray  # float32 [n, k], as of the last access; the policy fills it
    free: np.ndarray  # int32 [n], stack of free entries
    clock: np.ndarray  # int64 [6]: requests seen, objects held, time of the previous miss, whether any has left,
    # free entries, requests to keys remembered
    level: np.ndarray  # float64 [6]: mean requests between misses, novelty, miss share, mean size; weights of
    # the newest value in these averages, by miss and by request


def make_history(slots: int, entries_per_slot: float = 4.0, extras: int = 0, regions: bool = True) -> History:
    """Return an empty history for a cache of ``slots`` objects; at least ``slots`` + 1 entries.

    Without ``regions`` their features are all 0.
    """
    n = max(int(slots * entries_per_slot), slots) + 2
    return History(
        cells=make_index(n),
        links=make_links(n),
        fact=make_rows((FACTS * n,)),
        row=make_rows((n, 16), np.float32),
        regions=make_regions(slots if regions else 0),
        extra=np.zeros((n, extras), np.float32),
        free=np.arange(n, dtype=np.int32)[::-1].copy(),
        clock=np.array([0, 0, 0, 0, n, 0], np.int64),
        # Before anything is known a miss at every second request is assumed.
        level=np.array([2.0, 1.0, 1.0, 1.0, 1.0 / max(32.0, slots / 4.0), 1.0 / max(256.0, float(slots))]),
    )


@lean_kernel
def residence_time(h, slots):
    """Return T, in requests; until something has left, the cache is taken to hold an object in each of its slots."""
    return max(h.level[SPACING], 1.0) * max(np.int64(1), h.clock[HELD] if h.clock[LEFT] else np.int64(slots))


@lean_kernel
def residence_known(h, slots):
    """Return T in requests to keys remembered.

    What is watched for a use is watched by this clock (``features.samples``): while only keys are asked for that were
    never seen, as in a scan, there is nothing to be learned of the others.
    """
    return residence_time(h, slots) * max(1.0 - h.level[NOVEL], LEAST_KNOWN)


@lean_kernel
def note_hit(h, entry, e, slots):
    """Record a hit on a resident ``entry``."""
    _tick(h, 0.0, 0.0)
    h.row[entry, VISITS] += 1.0
    _access(h, entry, e, slots)
    visit(h.regions, e.key, 1.0, h.clock[NOW], residence_time(h, slots))


@lean_kernel
def note_miss(h, e, slots):
    """Record a miss and return the key's entry, which belongs to the caller: insert it, or ``note_eviction``."""
    entry = index_get(h.cells, h.fact, FACTS, e.key)
    _tick(h, 0.0 if entry >= 0 else 1.0, 1.0)
    h.level[SPACING] += h.level[BY_MISS] * (h.clock[NOW] - h.clock[PREVIOUS] - h.level[SPACING])
    h.clock[PREVIOUS] = h.clock[NOW]
    visit(h.regions, e.key, 1.0 if entry >= 0 else 0.0, h.clock[NOW], residence_time(h, slots))
    if entry >= 0:
        unlink(h.links, entry)
        _access(h, entry, e, slots)
        return entry
    if h.clock[FREE] == 0:
        oldest = back(h.links, h.free.size)
        unlink(h.links, oldest)
        forget(h, oldest)
    h.clock[FREE] -= 1
    entry = h.free[h.clock[FREE]]
    index_put(h.cells, e.key, entry)
    h.fact[FACTS * entry + KEY] = e.key
    now = h.clock[NOW]
    h.fact[FACTS * entry + LAST] = now
    h.fact[FACTS * entry + FIRST] = now
    h.fact[FACTS * entry + INSERTED] = now
    h.fact[FACTS * entry + EVICTED] = 0
    row = h.row
    for i in range(4):
        row[entry, GAPS + i] = -1.0
    for i in range(5):
        row[entry, RATES + i] = 1.0
    row[entry, COUNT] = 1.0
    row[entry, VISITS] = 0.0
    row[entry, RETURNS] = 0.0
    row[entry, ABSENCE] = -1.0
    _remember_levels(h, entry, e)
    return entry


@lean_kernel
def spare(h, e):
    """Tell whether ``note_miss`` has an entry for ``e`` without forgetting another key."""
    return h.clock[FREE] > 0 or index_get(h.cells, h.fact, FACTS, e.key) >= 0


@lean_kernel
def oldest_ghost(h):
    """Return the entry that ``note_miss`` forgets next."""
    return back(h.links, h.free.size)


@lean_kernel
def await_key(h, key):
    """Prefetch what tells the entry of ``key``."""
    index_await(h.cells, key)


@lean_kernel
def likely_entry(h, key):
    """Return the entry of ``key`` or another, whichever takes the fewest look-ups, or -1."""
    return index_guess(h.cells, key)


@lean_kernel
def await_entry(h, entry):
    """Prefetch what is remembered in an ``entry``."""
    prefetch(h.fact, FACTS * entry)
    prefetch(h.row, entry)


@lean_kernel
def await_forgetting(h, ghost):
    """Prefetch what is forgotten after ``ghost``, which is in the list; return the next ghost but one."""
    after = newer(h.links, ghost)
    later = newer(h.links, after)
    if after < h.free.size:
        index_await(h.cells, h.fact[FACTS * after + KEY])
    prefetch(h.fact, FACTS * later)
    prefetch(h.row, later)
    return later


@lean_kernel
def note_insertion(h, entry, e):
    """Record that ``entry``, from ``note_miss``, becomes resident."""
    now = h.clock[NOW]
    h.level[MEAN_SIZE] += h.level[BY_MISS] * (e.size - h.level[MEAN_SIZE])
    h.clock[HELD] += 1
    h.fact[FACTS * entry + INSERTED] = now
    h.row[entry, VISITS] = 0.0
    if h.fact[FACTS * entry + EVICTED] > 0:
        h.row[entry, RETURNS] += 1.0
        h.row[entry, ABSENCE] = now - h.fact[FACTS * entry + EVICTED]


@lean_kernel
def note_eviction(h, entry, was_resident):
    """Record that ``entry`` is not resident (any more); it is kept while there is room."""
    if was_resident:
        h.clock[HELD] -= 1
        h.clock[LEFT] = 1
        h.fact[FACTS * entry + EVICTED] = h.clock[NOW]
    push_front(h.links, h.free.size, entry)


@lean_kernel
def forget(h, entry):
    """Give up an ``entry`` that is in no list."""
    index_drop(h.cells, h.fact[FACTS * entry + KEY], entry)
    h.free[h.clock[FREE]] = entry
    h.clock[FREE] += 1


@lean_kernel
def write(h, entries, count, slots, out):
    """Write the feature rows of the first ``count`` of ``entries``, as of now, to ``out``, float32 ``[m, width]``.

    What is remembered is gathered for all rows before any of it is worked on: look-ups in memory then wait side by
    side, and where ``out`` is stored column by column the rest runs on several rows at once.
    """
    # Loops over locals: taking an array out of a tuple counts a reference, which would cost more than the row.
    fact = h.fact
    row = h.row
    extra = h.extra
    unit = 1.0 / residence_time(h, slots)
    now = h.clock[NOW]
    per_size = 1.0 / h.level[MEAN_SIZE]
    novelty = h.level[NOVEL]
    misses = h.level[MISSED]
    for i in range(count):
        entry = entries[i]
        out[i, 0] = now - fact[FACTS * entry + LAST]
        out[i, 11] = now - fact[FACTS * entry + FIRST]
        out[i, 14] = now - fact[FACTS * entry + INSERTED]
        for j in range(4):
            out[i, 1 + j] = row[entry, GAPS + j]
        for j in range(5):
            out[i, 5 + j] = row[entry, RATES + j]
        out[i, 10] = row[entry, COUNT]
        out[i, 13] = row[entry, VISITS]
        out[i, 16] = row[entry, RETURNS]
        out[i, 17] = row[entry, ABSENCE]
        out[i, 18] = row[entry, WEIGHT]
        out[i, 19] = row[entry, NOVELTY]
        out[i, 20] = row[entry, MISSES]
        for j in range(extra.shape[1]):
            out[i, WIDTH + j] = extra[entry, j]
    write_regions(h.regions, fact, entries, count, now, unit, out, len(OWN_FEATURES))
    for i in range(count):
        gap = np.float64(out[i, 1])
        out[i, 15] = gap / (np.float64(out[i, 0]) + 1.0) if gap >= 0.0 else MISSING
    for i in range(count):
        recency = np.float64(out[i, 0]) * unit
        out[i, 0] = recency
        slow = half_lives(recency * (1.0 / 16.0))
        for j in range(4, -1, -1):
            out[i, 5 + j] *= slow
            slow *= slow
            slow *= slow
    for j in range(1, 5):
        for i in range(count):
            gap = np.float64(out[i, j])
            out[i, j] = gap * unit if gap >= 0.0 else MISSING
    for i in range(count):
        age = np.float64(out[i, 11]) * unit
        seen = np.float64(out[i, 10])
        out[i, 12] = age / seen
        out[i, 11] = age
        out[i, 10] = min(seen, 64.0)
    for i in range(count):
        absence = np.float64(out[i, 17])
        out[i, 17] = absence * unit if absence >= 0.0 else MISSING
        out[i, 13] = min(np.float64(out[i, 13]), 16.0)
        out[i, 14] = np.float64(out[i, 14]) * unit
        out[i, 16] = min(np.float64(out[i, 16]), 16.0)
        out[i, 18] = np.float64(out[i, 18]) * per_size
        out[i, 21] = novelty
        out[i, 22] = misses


@lean_kernel
def _tick(h, novel, missed):
    h.clock[NOW] += 1
    h.clock[KNOWN] += novel == 0.0
    h.level[NOVEL] += h.level[BY_REQUEST] * (novel - h.level[NOVEL])
    h.level[MISSED] += h.level[BY_REQUEST] * (missed - h.level[MISSED])


@lean_kernel
def _access(h, entry, e, slots):
    now = h.clock[NOW]
    row = h.row
    gap = now - h.fact[FACTS * entry + LAST]
    slow = half_lives(gap / residence_time(h, slots) * (1.0 / 16.0))
    for i in range(4, -1, -1):
        row[entry, RATES + i] = 1.0 + row[entry, RATES + i] * slow
        slow *= slow
        slow *= slow
    row[entry, GAPS + 3] = row[entry, GAPS + 2]
    row[entry, GAPS + 2] = row[entry, GAPS + 1]
    row[entry, GAPS + 1] = row[entry, GAPS]
    row[entry, GAPS] = gap
    row[entry, COUNT] += 1.0
    h.fact[FACTS * entry + LAST] = now
    _remember_levels(h, entry, e)


@lean_kernel
def _remember_levels(h, entry, e):
    h.row[entry, NOVELTY] = h.level[NOVEL]
    h.row[entry, MISSES] = h.level[MISSED]
    h.row[entry, WEIGHT] = e.size
