"""Samples: feature rows taken at decisions, each waiting for its object's next access, which is its label.

A ring of ``m`` rows. A sample is linked to its object's history entry, which names the newest one among its facts,
until the object is asked for again, its entry is forgotten, or the ring overwrites it. Until then it tells for how long
there was no access, which is as good to learn from (``scorers.boosting``): none has to wait until it is known what came
of it.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import half_lives
from kvpredict.core.jit import lean_kernel
from kvpredict.features.facts import FACTS, SAMPLE

__all__ = ["Samples", "collect", "lose", "make_samples", "record", "resolve"]

TIME, DUE = 0, 1  # columns of Samples.when
OWNER, BEFORE, AFTER = 0, 1, 2  # columns of Samples.link
TAKEN = 0  # of Samples.clock
LATELY = 8.0  # residence times after which a sample counts half, or
SHARE = 0.25  # so much of all the past, where that is longer


class Samples(NamedTuple):
    """State over ``m`` samples."""

    row: np.ndarray  # float32 [m, width]
    when: np.ndarray  # int64 [m, 2]: time at which it was taken; of the object's next access, 0 while there was none.
    # Times are the caller's: the requests to keys remembered (features.history)
    unit: np.ndarray  # float64 [m], residence time when it was taken
    link: np.ndarray  # int32 [m, 3]: history entry it waits for, -1 when it does not wait; neighbours among the samples
    # of the same entry, -1 at an end
    clock: np.ndarray  # int64 [1], samples taken so far


def make_samples(m: int, width: int) -> Samples:
    """Return an empty ring."""
    return Samples(
        row=np.zeros((m, width), np.float32),
        when=np.zeros((m, 2), np.int64),
        unit=np.ones(m, np.float64),
        link=np.full((m, 3), -1, np.int32),
        clock=np.zeros(1, np.int64),
    )


@lean_kernel
def record(s, fact, x, i, entry, now, unit):
    """Take row ``i`` of ``x`` as a sample of ``entry``, in place of the oldest; ``fact`` is the history's."""
    m = s.unit.size
    at = s.clock[TAKEN] % m
    s.clock[TAKEN] += 1
    if s.link[at, OWNER] >= 0:
        before = s.link[at, BEFORE]
        after = s.link[at, AFTER]
        if before >= 0:
            s.link[before, AFTER] = after
        else:
            fact[FACTS * s.link[at, OWNER] + SAMPLE] = after
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
    head = fact[FACTS * entry + SAMPLE]
    s.link[at, AFTER] = head
    if head >= 0:
        s.link[head, BEFORE] = at
    fact[FACTS * entry + SAMPLE] = at


@lean_kernel
def resolve(s, fact, entry, now):
    """Note that ``entry`` is asked for: its samples know their label."""
    at = fact[FACTS * entry + SAMPLE]
    fact[FACTS * entry + SAMPLE] = -1
    while at >= 0:
        s.when[at, DUE] = now
        s.link[at, OWNER] = -1
        at = s.link[at, AFTER]


@lean_kernel
def lose(s, fact, entry):
    """Note that ``entry`` is forgotten: its samples count as not reused."""
    at = fact[FACTS * entry + SAMPLE]
    fact[FACTS * entry + SAMPLE] = -1
    while at >= 0:
        s.link[at, OWNER] = -1
        at = s.link[at, AFTER]


@lean_kernel
def collect(s, now, horizon, room, start, end, count):
    """Copy samples ``start`` to ``end`` of the ring to ``room`` (``scorers.boosting.Training``).

    ``count`` rows stand there already; returns how many there are now.

    A sample was watched until its object's next access, until now, or for ``horizon`` residence times. One of an object
    that has been forgotten since counts as watched, and not used, as the key's next access is a miss in any case.
    """
    x, row = room.x, s.row
    for i in range(start, min(s.clock[TAKEN], end)):
        unit = s.unit[i]
        age = np.float64(now - s.when[i, TIME])
        time = min(age, horizon * unit)
        used = 0.0
        if s.when[i, DUE] > 0 and s.when[i, DUE] - s.when[i, TIME] <= time:
            time = np.float64(s.when[i, DUE] - s.when[i, TIME])
            used = 1.0
        for j in range(row.shape[1]):
            x[count, j] = row[i, j]
        room.time[count] = time / unit
        room.used[count] = used
        room.weight[count] = half_lives(age / max(LATELY * unit, SHARE * now))
        count += 1
    return count
