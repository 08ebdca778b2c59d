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
their bins by counting borders, and rows go down a tree together, column by column. Of two sisters only one is added up,
the other is what remains of their parent. What is added up are both sums of a row in one whole number, in steps far
smaller than they need be (Shi et al., "Quantized training of gradient boosting decision trees", NeurIPS 2022): half the
work of two sums. And they are added up for two columns at once, by pairs of bins, from which the sums of either column
follow: half as many additions again.

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
BLOCK = 64  # rows that are worked on together
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
    expected: np.ndarray  # float32 [m], uses that the trees so far expect
    both: np.ndarray  # int64 [m], in steps: uses beyond those expected in the upper 32 bits, expected in the lower ones
    node: np.ndarray  # uint8 [m], node that each row has reached
    bins: np.ndarray  # uint8 [width, m]
    pairs: np.ndarray  # uint16 [pairs, m], cell of a pair of columns, for the bins of both
    edges: np.ndarray  # float32 [width, BINS - 1], borders between bins
    sample: np.ndarray  # float32 [1024, width]
    tile: np.ndarray  # float32 [width, BLOCK], a block of rows column by column
    border: np.ndarray  # int64 [nodes], last bin to the left
    chosen: np.ndarray  # int32 [m], rows that are added up
    factor: np.ndarray  # float32 [leaves]
    cells: np.ndarray  # int64 [pairs * BINS * BINS], sums of both by cell
    sums: np.ndarray  # int64 [nodes * width * BINS], of both by node, column and bin


def make_training(m: int, width: int, depth: int) -> Training:
    """Return room for ``m`` rows, up to a million or so, of at most 300 columns, and trees of ``depth``, at most 7."""
    return Training(
        x=np.zeros((m, width), np.float32),
        time=np.zeros(m, np.float32),
        used=np.zeros(m, np.float32),
        weight=np.ones(m, np.float32),
        uses=np.zeros(m, np.float32),
        expected=np.zeros(m, np.float32),
        both=np.zeros(m, np.int64),
        node=np.zeros(m, np.uint8),
        bins=np.zeros((width, m), np.uint8),
        pairs=np.zeros(((width + 1) // 2, m), np.uint16),
        edges=np.zeros((width, BINS - 1), np.float32),
        sample=np.zeros((SAMPLE, width), np.float32),
        tile=np.zeros((width, BLOCK), np.float32),
        border=np.zeros(2**depth - 1, np.int64),
        chosen=np.zeros(m, np.int32),
        factor=np.zeros(2**depth, np.float32),
        cells=np.zeros((width + 1) // 2 * BINS * BINS, np.int64),
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
    time, used, uses, expected, weight = training.time, training.used, training.uses, training.expected, training.weight
    for at in range(count):
        i = _row(at, count)
        expected[at] *= (min(np.float64(time[i]), near) + SOFT) / (time[i] + SOFT)
        uses[at] = weight[i] * used[i] if time[i] <= near else 0.0
    _fit(training, count, ranks.near, rate)


@lean_subroutine
def fit_far(training, count, trees, rate):
    """Fit ``trees`` in place to all of the time for which the first ``count`` rows were watched."""
    time, used, uses, expected, weight = training.time, training.used, training.uses, training.expected, training.weight
    _draw_borders(training.x, count, training.sample, training.edges)
    _bin(training.x, count, training.edges, training.tile, training.bins, training.pairs)
    for at in range(count):
        i = _row(at, count)
        expected[at] = weight[i] * (time[i] + SOFT)
        uses[at] = weight[i] * used[i]
    _fit(training, count, trees, rate)


@lean_subroutine
def _fit(training, count, trees, rate):
    """Fit ``trees`` to the uses beyond those that are expected so far."""
    bins, uses, expected, node, both = training.bins, training.uses, training.expected, training.node, training.both
    border, sums, factor = training.border, training.sums, training.factor
    width = len(bins)
    half = (count + 1) // 2
    inner = trees.feature.shape[1]
    found = 0.0
    total = 0.0
    for i in range(count):
        found += np.float64(uses[i])
        total += np.float64(expected[i])
    trees.base[0] = logarithm((total + SOFT) / (found + 0.5))
    steps = FINE / (found + 0.5)
    least = steps * LEAST * found / max(count, 1)
    for n in range(inner + 1):
        factor[n] = (found + 0.5) / (total + SOFT)
    for i in range(count):
        node[i] = inner
    _expect(uses, expected, both, node, inner, factor, steps, count)
    for t in range(trees.feature.shape[0]):
        feature = trees.feature[t]
        start, end = (half, count) if t & 1 else (0, half)
        for i in range(count):
            node[i] = 0
        first = 0
        while first < inner:  # one level: nodes first … 2 first
            if first == 0:
                _add_root(training, start, end)
            else:
                _add_level(training, first, start, end)
            for n in range(first, 2 * first + 1):
                column, bin_ = _best_split(sums, n * width * BINS, width, least)
                feature[n] = column
                border[n] = bin_
                trees.threshold[t, n] = training.edges[column, bin_] if bin_ < BINS - 1 else np.float32(np.inf)
            for n in range(first, 2 * first + 1):
                _descend(bins[feature[n]], border[n], node, n, count)
            first = 2 * first + 1
        _fill_leaves(both, node, inner, steps, count, trees.leaf[t], factor, rate)
        _expect(uses, expected, both, node, inner, factor, steps, count)


@lean_kernel
def _row(at, count):
    """Return which row stands at ``at``: the even ones come first, then the odd ones."""
    half = (count + 1) // 2
    return 2 * at if at < half else 2 * (at - half) + 1


@lean_kernel
def _expect(uses, expected, both, node, inner, factor, steps, count):
    """Expect ``factor`` times as many uses as so far, by leaf, and write the steps."""
    step, half = np.float32(steps), np.float32(0.5)
    for n in range(inner, 2 * inner + 1):
        times = factor[n - inner]
        for i in range(count):
            expected[i] = expected[i] * times if node[i] == n else expected[i]
    for i in range(count):
        mass = expected[i]
        beyond = np.int32(np.floor((uses[i] - mass) * step + half))
        both[i] = (np.int64(beyond) << 32) + np.int64(np.int32(mass * step + half))


@lean_kernel
def _add_root(training, start, end):
    """Add up rows ``start`` to ``end`` by column and bin."""
    pairs, both, cells = training.pairs, training.both, training.cells
    for at in range(cells.size):
        cells[at] = 0
    for i in range(start, end):
        _add_row(pairs, both, i, cells)
    _sum_columns(cells, training.sums, 0, len(training.bins))


@lean_kernel
def _add_level(training, first, start, end):
    """Add up rows ``start`` to ``end`` by node of the level that starts at ``first``, column and bin."""
    pairs, both, cells, node = training.pairs, training.both, training.cells, training.node
    chosen, sums = training.chosen, training.sums
    size = len(training.bins) * BINS
    for left in range(first, 2 * first + 1, 2):
        lefts, rights = start, end - 1  # rows of the left node are listed from the front, of the right from the back
        for i in range(start, end):
            chosen[lefts] = i
            lefts += node[i] == left
            chosen[rights] = i
            rights -= node[i] == left + 1
        fewer_left = lefts - start < end - 1 - rights
        begin, stop = (start, lefts) if fewer_left else (rights + 1, end)
        for at in range(cells.size):
            cells[at] = 0
        for at in range(begin, stop):
            _add_row(pairs, both, np.int64(chosen[at]), cells)
        smaller = left if fewer_left else left + 1
        of, sister, parent = smaller * size, (2 * left + 1 - smaller) * size, (left - 1) // 2 * size
        _sum_columns(cells, sums, of, len(training.bins))
        for at in range(size):
            sums[sister + at] = sums[parent + at] - sums[of + at]


@lean_kernel
def _add_row(pairs, both, i, cells):
    added = both[i]
    for k in range(len(pairs)):
        cells[np.int64(pairs[k, i])] += added


@lean_kernel
def _sum_columns(cells, sums, start, width):
    """Write the sums of each column, from those of pairs of columns, to ``sums`` from ``start`` on."""
    for j in range(0, width, 2):
        first = start + j * BINS
        second = first + BINS
        cell = j // 2 * BINS * BINS
        last = j + 1 == width  # and has been paired with itself
        if not last:
            for b in range(BINS):
                sums[second + b] = 0
        for b in range(BINS):
            added = np.int64(0)
            for d in range(BINS):
                added += cells[cell + d]
            sums[first + b] = added
            if not last:
                for d in range(BINS):
                    sums[second + d] += cells[cell + d]
            cell += BINS


@lean_kernel
def _descend(bins, border, node, n, count):
    """Take rows from node ``n`` to the level below."""
    left = np.uint8(2 * n + 1)
    right = np.uint8(2 * n + 2)
    for i in range(count):
        below = right if bins[i] > border else left
        node[i] = below if node[i] == n else node[i]


@lean_kernel
def _fill_leaves(both, node, inner, steps, count, leaf, factor, rate):
    """Give each leaf its share of the log of expected over found uses; ``factor`` is what it does to those expected."""
    besides = 1.0 + DOUBT * max(1.0 - count / PLENTY, 0.0)  # leaves of which hardly anything is known change little
    for n in range(inner + 1):
        added = np.int64(0)
        for i in range(count):
            added += both[i] if node[i] == inner + n else np.int64(0)
        expected = _lower(added) / steps
        found = expected + _upper(added) / steps
        leaf[n] = rate * logarithm((expected + besides) / (found + besides))
        factor[n] = exponential(-leaf[n])


@lean_kernel
def _draw_borders(x, count, sample, edges):
    """Write the borders between bins: a value up to ``edges[j, b]`` is in bin b or before."""
    taken = min(count, len(sample))
    for i in range(taken):
        for j in range(x.shape[1]):
            sample[i, j] = x[i * count // taken, j]
    _sort(sample, taken)
    for j in range(x.shape[1]):
        for b in range(BINS - 1):
            edges[j, b] = sample[(b + 1) * taken // BINS, j]


@lean_kernel
def _bin(x, count, edges, tile, bins, pairs):
    """Write every value's bin, and the cell of each pair of them."""
    width = x.shape[1]
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        for i in range(start, end):
            for j in range(width):
                tile[j, i - start] = x[_row(i, count), j]
        for j in range(width):
            borders, column, bin_ = edges[j], tile[j], bins[j]
            for i in range(start, end):
                at = np.int32(0)
                for b in range(BINS - 1):
                    at += np.int32(column[i - start] > borders[b])
                bin_[i] = at
        for k in range(len(pairs)):
            first, second, pair = bins[2 * k], bins[min(2 * k + 1, width - 1)], pairs[k]
            for i in range(start, end):
                pair[i] = (k * BINS + np.int64(first[i])) * BINS + np.int64(second[i])


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
