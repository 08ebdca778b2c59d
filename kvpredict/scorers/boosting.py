"""Gradient boosting of small regression trees, compiled, for models that are refitted inside a running cache.

Least squares over feature histograms (Friedman, "Greedy function approximation", Annals of Statistics 2001; histograms
as in LightGBM, Ke et al., NeurIPS 2017), trees grown level by level to one common depth and written straight into the
arrays that ``scorers.trees`` walks. As many rows as can be are worked on at once: borders are sorted for all columns by
one network of comparisons (Batcher, "Sorting networks and their applications", AFIPS 1968), values find their bins by
counting borders, and of two sisters only the smaller one is added up, the other is what remains of their parent.

Each tree looks for its splits in every other row, the even and the odd ones in turns; its leaves are means of all. Half
of the rows each is half the work, and trees that differ more (Friedman, "Stochastic gradient boosting", 2002).
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.scorers.trees import Trees

__all__ = ["Training", "empty_trees", "fit_trees", "make_training"]

BINS = 32
SAMPLE = 1024  # rows from which the borders of the bins are taken
LEAST = 20  # rows in a leaf


class Training(NamedTuple):
    """Room for ``m`` rows to fit to, and what a fit needs besides; nothing is allocated in a running cache."""

    x: np.ndarray  # float32 [m, width]
    y: np.ndarray  # float32 [m]
    rest: np.ndarray  # float32 [m], what the trees so far leave unexplained
    node: np.ndarray  # int32 [m], node that each row has reached
    bins: np.ndarray  # uint8 [m, width]
    edges: np.ndarray  # float32 [width, 31], borders between bins, stored border by border
    sample: np.ndarray  # float32 [1024, width]
    border: np.ndarray  # int64 [nodes], last bin to the left
    rows: np.ndarray  # float64 [leaves]
    add: np.ndarray  # uint8 [nodes], whether a node's sums are added up, or found by subtraction
    counts: np.ndarray  # float64 [2, width * 32], rows of even and of odd number by column and bin
    sums: np.ndarray  # float64 [nodes * width * 32, 2], of rest, and counts, by node, column and bin


def make_training(m: int, width: int, depth: int) -> Training:
    """Return room for ``m`` rows and trees of ``depth``."""
    return Training(
        x=np.zeros((m, width), np.float32),
        y=np.zeros(m, np.float32),
        rest=np.zeros(m, np.float32),
        node=np.zeros(m, np.int32),
        bins=np.zeros((m, width), np.uint8),
        edges=np.zeros((BINS - 1, width), np.float32).T,
        sample=np.zeros((SAMPLE, width), np.float32),
        border=np.zeros(2**depth - 1, np.int64),
        rows=np.zeros(2**depth),
        add=np.zeros(2**depth - 1, np.uint8),
        counts=np.zeros((2, width * BINS), np.float64),
        sums=np.zeros(((2**depth - 1) * width * BINS, 2), np.float64),
    )


def empty_trees(trees: int, depth: int) -> Trees:
    """Return ``trees`` trees of ``depth`` that score everything 0, to be filled by ``fit_trees``."""
    inner = 2**depth - 1
    return Trees(
        np.zeros((trees, inner), np.int16),
        np.full((trees, inner), np.inf, np.float32),
        np.zeros((trees, inner + 1), np.float64),
        np.zeros(1, np.float64),
    )


@lean_subroutine
def fit_trees(training, count, trees, rate):
    """Fit ``trees`` in place to the first ``count`` rows of ``training``; ``rate`` is the learning rate."""
    x, y, rest, node, bins, edges = (
        training.x, training.y, training.rest, training.node, training.bins, training.edges,
    )  # fmt: skip
    border, sums, leaf, feature = training.border, training.sums, trees.leaf, trees.feature
    width = x.shape[1]
    inner = feature.shape[1]
    _bin(x, count, training.sample, edges, bins)
    _count(bins, count, training.counts)
    total = 0.0
    for i in range(count):
        total += y[i]
    trees.base[0] = total / max(count, 1)
    for i in range(count):
        rest[i] = y[i] - trees.base[0]
    for t in range(feature.shape[0]):
        half = t & 1
        _add_root(bins, rest, count, half, training.counts, sums)
        for i in range(count):
            node[i] = 0
        first = 0
        while first < inner:  # one level: nodes first … 2 first
            if first > 0:
                _add_level(bins, rest, node, first, count, half, border, feature[t], training.add, sums)
            for n in range(first, 2 * first + 1):
                column, bin_ = _best_split(sums, n * width * BINS, width)
                feature[t, n] = column
                border[n] = bin_
                trees.threshold[t, n] = edges[column, bin_] if bin_ < BINS - 1 else np.float32(np.inf)
            for i in range(count):
                at = node[i]
                node[i] = 2 * at + 1 + (bins[i, feature[t, at]] > border[at])
            first = 2 * first + 1
        _fill_leaves(rest, node, inner, count, leaf[t], training.rows, rate)


@lean_kernel
def _count(bins, count, counts):
    """Count the rows of even and of odd number by column and bin, for all trees."""
    width = bins.shape[1]
    for half in range(2):
        for at in range(width * BINS):
            counts[half, at] = 0.0
        for i in range(half, count, 2):
            for j in range(width):
                counts[half, j * BINS + np.int64(bins[i, j])] += 1.0


@lean_kernel
def _add_root(bins, rest, count, half, counts, sums):
    """Add up ``rest`` of every other row by column and bin."""
    width = bins.shape[1]
    for at in range(width * BINS):
        sums[at, 0] = 0.0
        sums[at, 1] = counts[half, at]
    for i in range(half, count, 2):
        for j in range(width):
            sums[j * BINS + np.int64(bins[i, j]), 0] += rest[i]


@lean_kernel
def _add_level(bins, rest, node, first, count, half, border, feature, add, sums):
    """Add up ``rest`` and rows, every other one, by node of the level that starts at ``first``, column and bin."""
    width = bins.shape[1]
    cells = width * BINS
    for left in range(first, 2 * first + 1, 2):
        above = (left - 1) // 2
        rows = 0.0
        below = 0.0
        for b in range(BINS):
            rows += sums[above * cells + feature[above] * BINS + b, 1]
            below += sums[above * cells + feature[above] * BINS + b, 1] if b <= border[above] else 0.0
        add[left] = 2.0 * below <= rows
        add[left + 1] = not add[left]
        smaller = left if add[left] else left + 1
        for at in range(smaller * cells, (smaller + 1) * cells):
            sums[at, 0] = 0.0
            sums[at, 1] = 0.0
    for i in range(half, count, 2):
        if add[node[i]]:
            at = node[i] * cells
            for j in range(width):
                sums[at + np.int64(bins[i, j]), 0] += rest[i]
                sums[at + np.int64(bins[i, j]), 1] += 1.0
                at += BINS
    for n in range(first, 2 * first + 1):
        if not add[n]:
            sister = n + 1 if n & 1 else n - 1
            for at in range(cells):
                for k in range(2):
                    sums[n * cells + at, k] = sums[(n - 1) // 2 * cells + at, k] - sums[sister * cells + at, k]


@lean_kernel
def _fill_leaves(rest, node, inner, count, leaf, rows, rate):
    """Give each leaf its share of the mean of its rows, and take that off ``rest``."""
    for n in range(inner + 1):
        leaf[n] = 0.0
        rows[n] = 0.0
    for i in range(count):
        leaf[node[i] - inner] += rest[i]
        rows[node[i] - inner] += 1.0
    for n in range(inner + 1):
        leaf[n] = rate * leaf[n] / max(rows[n], 1.0)
    for i in range(count):
        rest[i] -= leaf[node[i] - inner]


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
def _best_split(sums, start, width):
    """Return the column and the last bin to the left that lower the squared error most; bin BINS - 1 for no split."""
    total = 0.0
    count = 0.0
    for b in range(BINS):
        total += sums[start + b, 0]
        count += sums[start + b, 1]
    best = total * total / max(count, 1.0) + 1e-9
    column = 0
    border = BINS - 1
    for j in range(width):
        left = 0.0
        held = 0.0
        for b in range(BINS - 1):
            left += sums[start + j * BINS + b, 0]
            held += sums[start + j * BINS + b, 1]
            if held < LEAST or count - held < LEAST:
                continue
            gain = left * left / held + (total - left) * (total - left) / (count - held)
            if gain > best:
                best = gain
                column = j
                border = b
    return column, border
