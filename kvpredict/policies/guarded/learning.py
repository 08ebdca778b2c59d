"""Learning inside the cache: what is sampled at decisions, and when and how the model is fitted anew."""

import numpy as np

from kvpredict.core.jit import kernel, lean_kernel
from kvpredict.core.policy import IDLE
from kvpredict.core.prefetch import prefetch
from kvpredict.core.random import below, uniform
from kvpredict.features.facts import FACTS
from kvpredict.features.history import KNOWN, residence_known, residence_time
from kvpredict.features.samples import collect, record
from kvpredict.policies.guarded.state import (
    AHEAD,
    BEGUN,
    DUE,
    FITS,
    HAS_MODEL,
    HORIZON,
    INHERITED,
    LAMBDA,
    LEARNS,
    NEXT_FIT,
    PER_DECISION,
)
from kvpredict.scorers.boosting import fit_ranks

FAR_TREES, NEAR_TREES, DEPTH, RATE = 24, 8, 2, 0.2
FIRST_FIT = 2000  # requests
GROWTH = 0.45  # requests from one fit to the next, for each one since the schedule began
SETTLED, OLD = 10.0, 100_000  # capacities and requests after which a schedule may begin anew
FREE, PER_FIT = 20, 100_000  # fits, and requests for each of any more, beyond which it may not
FEWEST = 500  # samples that a fit needs
RING = 256.0  # residence times that the samples cover, at most: older ones are of another time
RECENT = 2e6  # requests that they may cover in any case
FIRST = 16.0  # residence times that they are spread over at least
AT_ONCE = 8  # candidates drawn ahead at an eviction


@lean_kernel
def schedule_fit(c):
    now = c.history.clock[0]
    gap = np.int64(GROWTH * (now - c.word[BEGUN]))
    c.word[NEXT_FIT] = now + max(np.int64(500), min(gap, np.int64(400_000)))


@lean_kernel
def fit_often(c):
    """Begin the schedule of fits anew, for another leads, so the workload may have shifted.

    What is sampled goes on as before, and the fits so far bound how often this happens: leaders that are as good as
    each other take turns, and a fit costs as much as ten thousand requests.
    """
    word, now, held = c.word, c.history.clock[0], c.history.clock[1]
    fits = word[FITS] - word[INHERITED]
    if now - word[BEGUN] > max(SETTLED * held, OLD) and fits <= FREE + now // PER_FIT:
        word[BEGUN] = now
        word[NEXT_FIT] = min(word[NEXT_FIT], now + max(np.int64(FIRST_FIT), held // 4))


@lean_kernel
def is_sampled(c, samples, victims):
    """Tell whether a decision about so many victims is one to learn from: often enough to fill the ring."""
    now = c.history.clock[0]
    held = max(c.history.clock[1], np.int64(1))
    unit = residence_time(c.history, len(c.slot))
    # All the past while it is short, so that a large cache does not wait for its ring to fill.
    span = min(max(np.float64(now), FIRST * unit), max(RING * unit, RECENT))
    rows = samples.unit.size * victims * (unit / held) / span
    return c.level[LEARNS] > 0.0 and uniform(c.word) * PER_DECISION < rows


@lean_kernel
def draw(c, start, end):
    """Draw residents at random."""
    drawn, resident, word, held = c.drawn, c.resident, c.word, c.history.clock[1]
    for i in range(start, end):
        drawn[i] = resident[below(word, held)]


@lean_kernel
def draw_ahead(c):
    """Draw a few of the next candidates, whose rows are then at hand when they are scored."""
    ahead, resident, reprieved, word, held = c.ahead, c.resident, c.reprieved, c.word, c.history.clock[1]
    fact, row = c.history.fact, c.history.row
    end = min(word[AHEAD] + AT_ONCE, np.int64(ahead.size))
    for i in range(word[AHEAD], end):
        at = below(word, held)
        ahead[i] = at
        if reprieved[at] == 0:
            prefetch(fact, FACTS * resident[at])
            prefetch(row, resident[at])
    word[AHEAD] = end


@lean_kernel
def draw_anew(c, start, draws):
    """Take so many residents at random, those drawn ahead before others; return the end of those without reprieve."""
    ahead, drawn, resident, reprieved, word = c.ahead, c.drawn, c.resident, c.reprieved, c.word
    held, end = c.history.clock[1], start
    for i in range(draws):
        at = np.int64(ahead[i])
        if i >= word[AHEAD] or at >= held:
            at = below(word, held)
        left = reprieved[at]
        drawn[end] = resident[at]
        reprieved[at] = left - (left > 0)
        end += left == 0
    word[AHEAD] = 0
    return end


@lean_kernel
def keep_rows(c, samples, start):
    """Keep the rows of ``PER_DECISION`` candidates from ``start`` on, random residents, as samples."""
    h = c.history
    unit = residence_known(h, len(c.slot))
    for i in range(start, start + PER_DECISION):
        record(samples, h.fact, c.x, i, c.drawn[i], h.clock[KNOWN], unit)


@lean_kernel
def begin_to_use(c):
    """Take note of a new model. The first one is trusted until the cache misses more by it than the leader does."""
    if c.word[FITS] == 0:
        c.level[LAMBDA] = 0.0
    c.word[FITS] += 1
    c.word[HAS_MODEL] = 1


@kernel
def gather_rows(c, samples, training, rows, start, end):
    if start == 0:
        rows[0] = 0
    rows[0] = collect(samples, c.history.clock[KNOWN], c.level[HORIZON], training, start, end, rows[0])


@kernel
def fit_rows(training, rows, ranks, near):
    if rows[0] >= FEWEST:
        fit_ranks(training, rows[0], ranks, RATE, near)


@kernel
def _copy(trees, into):
    into.feature[:] = trees.feature
    into.threshold[:] = trees.threshold
    into.leaf[:] = trees.leaf
    into.base[:] = trees.base


@kernel
def adopt(c, model, ranks, rows):
    if rows[0] < 0:
        return
    if rows[0] >= FEWEST:
        _copy(ranks.far, model.far)
        _copy(ranks.near, model.near)
        begin_to_use(c)
    schedule_fit(c)
    c.word[DUE] = IDLE
