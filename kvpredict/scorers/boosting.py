"""Gradient boosting of small trees that predict a time per use, compiled, for models refitted inside a running cache.

What is fitted is a rate: uses over time watched. A row that was watched for a time ``t``, to a use or to no use, is
worth (use) log(rate) - rate t, the likelihood of a process whose rate the row tells (Cox and Oakes, "Analysis of
Survival Data", 1984, section 3). So a row counts from the moment it is taken, for the time it has been watched, and
nothing has to be said of what comes later. Trees add up to the log of 1 / rate, the time per use, each of them a step
of boosting (Friedman, "Greedy function approximation", Annals of Statistics 2001).

Looking far ahead, an object that is used soon or never may come out as one that is used some day. An object is worth
keeping for the best that it offers, over any time ahead: the largest ratio of uses to time held (Gittins, "Bandit
processes and dynamic allocation indices", J. Royal Statistical Society B 41, 1979). ``Ranks`` are trees for two such
times: ``far`` as far as rows were watched, and ``near``, by what the log is less where only so much of the time
counts.

Histograms as in LightGBM (Ke et al., NeurIPS 2017), trees grown level by level to one common depth and written straight
into the arrays that ``scorers.trees`` walks. As many rows as can be are worked on at once: borders are sorted for all
columns by one network of comparisons (Batcher, "Sorting networks and their applications", AFIPS 1968), values find
their bins by counting borders, and of two sisters only one is added up, the other is what remains of their parent.
What is added up are both sums of a row in one whole number, in steps far smaller than they need be (Shi et al.,
"Quantized training of gradient boosting decision trees", NeurIPS 2022): half the work of two sums.

Each tree looks for its splits in every other row, the even and the odd ones in turns; its leaves are of all. Half of
the rows each is half the work, and trees that differ more (Friedman, "Stochastic gradient boosting", 2002).
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import exponential, logarithm
from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.scorers.trees import Trees, score_columns

__all__ = ["Ranks", "Training", "empty_ranks", "empty_trees", "fit_far", "fit_ranks", "make_training", "rank_columns"]

BINS = 20
SAMPLE = 1024  # rows from which the borders of the bins are taken
FINE = 2.0**27  # steps that all uses found are added up in; with those expected, a sixteenth of what 32 bits hold
LEAST = 20  # rows on either side of a split: fewer uses than so many rows have on average are none to go by
SOFT = 0.05  # added to all times: what is used so soon is kept in any case
DOUBT = 100.0  # uses, as many found as expected, that a leaf counts besides its own while there are few rows
PLENTY = 10_000  # rows that are not few any more


class Ranks(NamedTuple):
    """Who is to go first: the sum of ``far``, and of ``near`` where that is below 0."""

    far: Trees
    near: Trees


class Training(NamedTuple):
    """Room for ``m`` rows to fit to, and what a fit needs besides; nothing is allocated in a running cache."""

    x: np.ndarray  # float32 [m, width]
    time: np.ndarray  # float32 [m], for which each was watched
    used: np.ndarray  # float32 [m], 1 where a use ended that time, else 0
    weight: np.ndarray  # float32 [m]
    uses: np.ndarray  # float32 [m], weighed, within the time ahead
    rest: np.ndarray  # float32 [m, 2]: uses beyond those that the trees so far expect; expected uses
    both: np.ndarray  # int64 [m], rest in steps: the first in the upper 32 bits, the second in the lower ones
    node: np.ndarray  # int32 [m], node that each row has reached
    bins: np.ndarray  # uint8 [m, width]
    edges: np.ndarray  # float32 [width, BINS - 1], borders between bins, stored border by border
    sample: np.ndarray  # float32 [1024, width]
    border: np.ndarray  # int64 [nodes], last bin to the left
    rows: np.ndarray  # int64 [nodes], how many are looked at; then whether they are added up or their sister's are
    chosen: np.ndarray  # int32 [m], rows that are added up
    leaves: np.ndarray  # float64 [leaves, 2], uses and expected uses of each
    sums: np.ndarray  # int64 [nodes * width * BINS], of both by node, column and bin


def make_training(m: int, width: int, depth: int) -> Training:
    """Return room for ``m`` rows, up to a million or so, and trees of ``depth``."""
    return Training(
        x=np.zeros((m, width), np.float32),
        time=np.zeros(m, np.float32),
        used=np.zeros(m, np.float32),
        weight=np.ones(m, np.float32),
        uses=np.zeros(m, np.float32),
        rest=np.zeros((m, 2), np.float32),
        both=np.zeros(m, np.int64),
        node=np.zeros(m, np.int32),
        bins=np.zeros((m, width), np.uint8),
        edges=np.zeros((BINS - 1, width), np.float32).T,
        sample=np.zeros((SAMPLE, width), np.float32),
        border=np.zeros(2**depth - 1, np.int64),
        rows=np.zeros(2**depth - 1, np.int64),
        chosen=np.zeros(m, np.int32),
        leaves=np.zeros((2**depth, 2), np.float64),
        sums=np.zeros((2**depth - 1) * width * BINS, np.int64),
    )


def empty_trees(trees: int, depth: int) -> Trees:
    """Return ``trees`` trees of ``depth`` that score everything 0, to be filled by a fit."""
    inner = 2**depth - 1
    return Trees(
        np.zeros((trees, inner), np.int16),
        np.full((trees, inner), np.inf, np.float32),
        np.zeros((trees, inner + 1), np.float64),
        np.zeros(1, np.float64),
    )


def empty_ranks(far: int, near: int, depth: int) -> Ranks:
    """Return so many trees of each kind, which rank all alike."""
    return Ranks(empty_trees(far, depth), empty_trees(near, depth))


@lean_subroutine
def rank_columns(ranks, x, count, out, spare):
    """Write the ranks of the first ``count`` rows of ``x``, stored column by column, to ``out``; the highest goes.

    ``spare`` is room for as many numbers.
    """
    score_columns(ranks.far, x, count, out)
    score_columns(ranks.near, x, count, spare)
    for i in range(count):
        out[i] += min(spare[i], 0.0)


@lean_subroutine
def fit_ranks(training, count, ranks, rate, near):
    """Fit ``ranks`` in place to the first ``count`` rows of ``training``.

    ``rate`` is the learning rate, ``near`` the time ahead for which the near trees look.
    """
    fit_far(training, count, ranks.far, rate)
    # The near trees begin where the far ones ended: what they have to learn is little, from few uses.
    time, used, uses, rest, weight = training.time, training.used, training.uses, training.rest, training.weight
    for i in range(count):
        rest[i, 1] *= (min(np.float64(time[i]), near) + SOFT) / (time[i] + SOFT)
        uses[i] = weight[i] * used[i] if time[i] <= near else 0.0
    _fit(training, count, ranks.near, rate)


@lean_subroutine
def fit_far(training, count, trees, rate):
    """Fit ``trees`` in place to all of the time for which the first ``count`` rows were watched."""
    time, used, uses, rest, weight = training.time, training.used, training.uses, training.rest, training.weight
    _bin(training.x, count, training.sample, training.edges, training.bins)
    for i in range(count):
        rest[i, 1] = weight[i] * (time[i] + SOFT)
        uses[i] = weight[i] * used[i]
    _fit(training, count, trees, rate)


@lean_subroutine
def _fit(training, count, trees, rate):
    """Fit ``trees`` to the uses beyond those that are expected so far."""
    bins, edges, uses, rest, node = training.bins, training.edges, training.uses, training.rest, training.node
    border, sums, leaf, feature = training.border, training.sums, trees.leaf, trees.feature
    width = bins.shape[1]
    inner = feature.shape[1]
    found = 0.0
    expected = 0.0
    for i in range(count):
        found += uses[i]
        expected += rest[i, 1]
    trees.base[0] = logarithm((expected + SOFT) / (found + 0.5))
    scale = (found + 0.5) / (expected + SOFT)
    for i in range(count):
        rest[i, 1] *= scale
        rest[i, 0] = uses[i] - rest[i, 1]
    steps = FINE / (found + 0.5)
    least = steps * LEAST * found / max(count, 1)
    for t in range(feature.shape[0]):
        half = t & 1
        _add_root(bins, rest, steps, count, half, training.both, sums)
        first = 0
        while first < inner:  # one level: nodes first … 2 first
            if first > 0:
                _descend(bins, feature[t], border, node, half, count, 2, first)
                _add_level(bins, training.both, node, first, count, half, training.rows, training.chosen, sums)
            for n in range(first, 2 * first + 1):
                column, bin_ = _best_split(sums, n * width * BINS, width, least)
                feature[t, n] = column
                border[n] = bin_
                trees.threshold[t, n] = edges[column, bin_] if bin_ < BINS - 1 else np.float32(np.inf)
            first = 2 * first + 1
        _descend(bins, feature[t], border, node, 0, count, 1, inner)
        _fill_leaves(uses, rest, node, inner, count, leaf[t], training.leaves, rate)


@lean_kernel
def _add_root(bins, rest, steps, count, half, both, sums):
    """Add up every other row by column and bin."""
    width = bins.shape[1]
    for at in range(width * BINS):
        sums[at] = 0
    for i in range(half, count, 2):
        beyond = np.int64(np.floor(rest[i, 0] * steps + 0.5))
        both[i] = (beyond << 32) + np.int64(rest[i, 1] * steps + 0.5)
    for i in range(half, count, 2):
        added = both[i]
        for j in range(width):
            sums[j * BINS + np.int64(bins[i, j])] += added


@lean_kernel
def _descend(bins, feature, border, node, start, count, step, first):
    """Take every ``step``-th row from the root to the level that starts at ``first``."""
    for i in range(start, count, step):
        at = 0
        while at < first:
            at = 2 * at + 1 + (bins[i, feature[at]] > border[at])
        node[i] = at


@lean_kernel
def _add_level(bins, both, node, first, count, half, rows, chosen, sums):
    """Add up every other row by node of the level that starts at ``first``, column and bin."""
    width = bins.shape[1]
    cells = width * BINS
    for n in range(first, 2 * first + 1):
        at_n = np.int32(0)
        for i in range(half, count, 2):
            at_n += node[i] == n
        rows[n] = at_n
    for left in range(first, 2 * first + 1, 2):
        smaller = left if rows[left] <= rows[left + 1] else left + 1
        rows[left] = smaller == left  # from here on: whether it is added up
        rows[left + 1] = smaller > left
        for at in range(smaller * cells, (smaller + 1) * cells):
            sums[at] = 0
    found = np.int64(0)
    for i in range(half, count, 2):
        chosen[found] = i
        found += rows[node[i]]
    for k in range(found):
        row = np.int64(chosen[k])
        at = node[row] * cells
        added = both[row]
        for j in range(width):
            sums[at + np.int64(bins[row, j])] += added
            at += BINS
    for n in range(first, 2 * first + 1):
        if not rows[n]:
            parent = (n - 1) // 2 * cells
            sister = (n + 1 if n & 1 else n - 1) * cells
            for at in range(cells):
                sums[n * cells + at] = sums[parent + at] - sums[sister + at]


@lean_kernel
def _fill_leaves(uses, rest, node, inner, count, leaf, leaves, rate):
    """Give each leaf its share of the log of expected over found uses, and expect accordingly from then on."""
    besides = 1.0 + DOUBT * max(1.0 - count / PLENTY, 0.0)
    for n in range(inner + 1):
        leaves[n, 0] = besides  # a leaf that hardly anything is known of leaves things as they are
        leaves[n, 1] = besides
    for i in range(count):
        leaves[node[i] - inner, 0] += uses[i]
        leaves[node[i] - inner, 1] += rest[i, 1]
    for n in range(inner + 1):
        leaf[n] = rate * logarithm(leaves[n, 1] / leaves[n, 0])
        leaves[n, 0] = exponential(-leaf[n])
    for i in range(count):
        rest[i, 1] *= leaves[node[i] - inner, 0]
        rest[i, 0] = uses[i] - rest[i, 1]


@lean_kernel
def _bin(x, count, sample, edges, bins):
    """Write the borders between bins (a value up to ``edges[j, b]`` is in bin b or before) and every value's bin."""
    taken = min(count, len(sample))
    for i in range(taken):
        for j in range(x.shape[1]):
            sample[i, j] = x[i * count // taken, j]
    _sort(sample, taken)
    for b in range(BINS - 1):
        for j in range(x.shape[1]):
            edges[j, b] = sample[(b + 1) * taken // BINS, j]
    for i in range(count):
        for j in range(x.shape[1]):
            bins[i, j] = 0
        for b in range(BINS - 1):
            for j in range(x.shape[1]):
                bins[i, j] += x[i, j] > edges[j, b]


@lean_kernel
def _sort(values, count):
    """Sort each column of the first ``count`` rows by Batcher's merge exchange."""
    top = 1
    while 2 * top < count:
        top *= 2
    span = top
    while span > 0:
        reach = top
        distance = span
        phase = 0
        while True:
            for i in range(count - distance):
                if i & span == phase:
                    low, high = values[i], values[i + distance]
                    for j in range(low.size):
                        one, other = low[j], high[j]
                        low[j] = other if other < one else one
                        high[j] = one if other < one else other
            if reach == span:
                break
            distance = reach - span
            reach //= 2
            phase = span
        span //= 2


@lean_kernel
def _best_split(sums, start, width, least):
    """Return the column and the last bin to the left that explain most; bin BINS - 1 for no split.

    On either side more uses than ``least`` are expected, in steps.
    """
    total = np.int64(0)
    for b in range(BINS):
        total += sums[start + b]
    beyond = _upper(total)
    expected = _lower(total)
    best = beyond * beyond / max(expected, 1e-9) * (1.0 + 1e-9) + 1e-9  # more than rounding makes of nothing
    column = 0
    border = BINS - 1
    for j in range(width):
        so_far = np.int64(0)
        for b in range(BINS - 1):
            so_far += sums[start + j * BINS + b]
            left = _upper(so_far)
            held = _lower(so_far)
            if held <= least or expected - held <= least:
                continue
            gain = left * left / held + (beyond - left) * (beyond - left) / (expected - held)
            if gain > best:
                best = gain
                column = j
                border = b
    return column, border


@lean_kernel
def _upper(sums):
    return np.float64(sums >> 32)


@lean_kernel
def _lower(sums):
    return np.float64(sums & 0xFFFFFFFF)
