"""Samples: feature rows taken at decisions, each waiting for its object's next access, which is its label.

A ring of ``m`` rows. A sample is linked to its object's history entry until the object is asked for again, its entry is
forgotten, or the ring overwrites it. Only samples older than the horizon are used for training, reused or not: a
younger one would enter only if its object came back soon, which teaches that everything comes back soon.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import compress
from kvpredict.core.jit import lean_kernel

__all__ = ["Samples", "collect", "lose", "make_samples", "record", "resolve"]

TIME, DUE = 0, 1  # columns of Samples.when
OWNER, BEFORE, AFTER = 0, 1, 2  # columns of Samples.link
TAKEN = 0  # of Samples.clock
SOFT = 0.3  # of a residence time: below it distances hardly differ, as objects reused so soon are kept in any case


class Samples(NamedTuple):
    """State over ``m`` samples of objects among ``n`` history entries."""

    row: np.ndarray  # float32 [m, width]
    when: np.ndarray  # int64 [m, 2]: request at which it was taken; of the object's next access, 0 while there was none
    unit: np.ndarray  # float64 [m], residence time when it was taken, in requests
    link: np.ndarray  # int32 [m, 3]: history entry it waits for, -1 when it does not wait; neighbours among the samples
    # of the same entry, -1 at an end
    first: np.ndarray  # int32 [n], an entry's newest waiting sample, -1 when there is none
    clock: np.ndarray  # int64 [1], samples taken so far


def make_samples(m: int, width: int, entries: int) -> Samples:
    """Return an empty ring."""
    return Samples(
        row=np.zeros((m, width), np.float32),
        when=np.zeros((m, 2), np.int64),
        unit=np.ones(m, np.float64),
        link=np.full((m, 3), -1, np.int32),
        first=np.full(entries, -1, np.int32),
        clock=np.zeros(1, np.int64),
    )


@lean_kernel
def record(s, x, i, entry, now, unit):
    """Take row ``i`` of ``x`` as a sample of ``entry``, in place of the oldest."""
    m = s.unit.size
    at = s.clock[TAKEN] % m
    s.clock[TAKEN] += 1
    if s.link[at, OWNER] >= 0:
        before = s.link[at, BEFORE]
        after = s.link[at, AFTER]
        if before >= 0:
            s.link[before, AFTER] = after
        else:
            s.first[s.link[at, OWNER]] = after
        if after >= 0:
            s.link[after, BEFORE] = before
    rows = s.row
    for j in range(rows.shape[1]):
        rows[at, j] = x[i, j]
    s.when[at, TIME] = now
    s.unit[at] = unit
    s.when[at, DUE] = 0
    s.link[at, OWNER] = entry
    s.link[at, BEFORE] = -1
    head = s.first[entry]
    s.link[at, AFTER] = head
    if head >= 0:
        s.link[head, BEFORE] = at
    s.first[entry] = at


@lean_kernel
def resolve(s, entry, now):
    """Note that ``entry`` is asked for: its samples know their label."""
    at = s.first[entry]
    s.first[entry] = -1
    while at >= 0:
        s.when[at, DUE] = now
        s.link[at, OWNER] = -1
        at = s.link[at, AFTER]


@lean_kernel
def lose(s, entry):
    """Note that ``entry`` is forgotten: its samples count as not reused."""
    at = s.first[entry]
    s.first[entry] = -1
    while at >= 0:
        s.link[at, OWNER] = -1
        at = s.link[at, AFTER]


@lean_kernel
def collect(s, now, horizon, x, y, start, end, count):
    """Copy samples ``start`` to ``end`` of the ring, if older than ``horizon`` requests, to ``x`` and ``y``.

    ``count`` rows stand there already; returns how many there are now.

    A label is log(1 + distance to the next access + soft) - log(1 + residence time + soft), the distance cut at the
    horizon.
    """
    row = s.row
    for i in range(start, min(s.clock[TAKEN], end)):
        if s.when[i, TIME] + horizon > now:
            continue
        distance = horizon
        if s.when[i, DUE] > 0:
            distance = min(horizon, np.float64(s.when[i, DUE] - s.when[i, TIME]))
        for j in range(row.shape[1]):
            x[count, j] = row[i, j]
        soft = SOFT * s.unit[i]
        y[count] = compress(distance + soft) - compress(s.unit[i] + soft)
        count += 1
    return count
