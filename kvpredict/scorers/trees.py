"""Decision trees, one or many: the raw score is the sum of the leaves that a row falls into.

Every tree is stored as a perfect binary tree of one common depth, so walking is ``depth`` steps without a branch to
mispredict: from node i to 2 i + 1 (value <= threshold) or 2 i + 2. Eight rows walk each tree side by side, which
hides the latency of the loads. A tree that is shallower somewhere repeats its leaf below.

Rows are float32. A threshold of a double t is stored as the largest float32 not above it, which splits float32
values exactly as t does.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.errors import ArtifactError, KvpredictError
from kvpredict.core.jit import lean_kernel

__all__ = ["MAX_DEPTH", "Trees", "check", "make_trees", "score_batch", "score_columns", "score_steps"]

MAX_DEPTH = 12  # 4096 leaves a tree


class Trees(NamedTuple):
    """``t`` perfect trees of depth ``d``."""

    feature: np.ndarray  # int16 [t, 2**d - 1], column tested at each node
    threshold: np.ndarray  # float32 [t, 2**d - 1]
    leaf: np.ndarray  # float64 [t, 2**d]
    base: np.ndarray  # float64 [1], added to every sum


class Node(NamedTuple):
    """A node of a tree as learners hand it over: a split, or a leaf when ``left`` is None."""

    value: float = 0.0
    feature: int = 0
    threshold: float = 0.0
    left: "Node | None" = None
    right: "Node | None" = None


def make_trees(roots: list[Node], base: float = 0.0) -> Trees:
    """Flatten trees; raises ``KvpredictError`` when one is deeper than ``MAX_DEPTH``."""
    depth = max([_depth(root) for root in roots], default=0)
    if depth > MAX_DEPTH:
        raise KvpredictError(f"a tree of depth {depth} cannot be served (at most {MAX_DEPTH}): lower max_depth")
    depth = max(depth, 1)
    inner = 2**depth - 1
    trees = Trees(
        np.zeros((len(roots), inner), np.int16),
        np.full((len(roots), inner), np.inf, np.float32),
        np.zeros((len(roots), inner + 1), np.float64),
        np.array([base], np.float64),
    )
    for t, root in enumerate(roots):
        _fill(trees, t, root, 0, inner)
    return trees


def _depth(node: Node) -> int:
    return 0 if node.left is None or node.right is None else 1 + max(_depth(node.left), _depth(node.right))


def _fill(trees: Trees, t: int, node: Node, at: int, inner: int) -> None:
    if at >= inner:
        trees.leaf[t, at - inner] = node.value
        return
    if node.left is None or node.right is None:
        left = right = node  # threshold stays inf: everything goes left, into the same leaf anyway
    else:
        left, right = node.left, node.right
        trees.feature[t, at] = node.feature
        trees.threshold[t, at] = _float32_at_most(node.threshold)
    _fill(trees, t, left, 2 * at + 1, inner)
    _fill(trees, t, right, 2 * at + 2, inner)


def _float32_at_most(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest


def check(trees: Trees, width: int) -> None:
    """Raise ``ArtifactError`` unless the arrays fit each other and rows of ``width`` columns."""
    count, inner = trees.feature.shape if trees.feature.ndim == 2 else (-1, 0)
    good = (
        trees.feature.dtype == np.int16
        and trees.threshold.dtype == np.float32
        and trees.leaf.dtype == np.float64
        and inner > 0
        and (inner + 1) & inner == 0
        and trees.threshold.shape == (count, inner)
        and trees.leaf.shape == (count, inner + 1)
        and trees.base.shape == (1,)
        and trees.base.dtype == np.float64
        and bool(((trees.feature >= 0) & (trees.feature < width)).all())
        and bool(np.isfinite(trees.leaf).all())
        and bool(np.isfinite(trees.base).all())
        and not bool(np.isnan(trees.threshold).any())
    )
    if not good:
        raise ArtifactError(f"the arrays of the trees are inconsistent or do not fit rows of {width} features")


@lean_kernel
def score_batch(trees, x, count, out):
    feature = trees.feature
    threshold = trees.threshold
    leaf = trees.leaf
    inner = feature.shape[1]
    for i in range(count):
        out[i] = trees.base[0]
    whole = count - count % 8
    for t in range(feature.shape[0]):
        f = feature[t]
        h = threshold[t]
        v = leaf[t]
        for i in range(0, whole, 8):
            a = b = c = d = p = q = r = s = 0
            while a < inner:
                a = 2 * a + 1 + (x[i, f[a]] > h[a])
                b = 2 * b + 1 + (x[i + 1, f[b]] > h[b])
                c = 2 * c + 1 + (x[i + 2, f[c]] > h[c])
                d = 2 * d + 1 + (x[i + 3, f[d]] > h[d])
                p = 2 * p + 1 + (x[i + 4, f[p]] > h[p])
                q = 2 * q + 1 + (x[i + 5, f[q]] > h[q])
                r = 2 * r + 1 + (x[i + 6, f[r]] > h[r])
                s = 2 * s + 1 + (x[i + 7, f[s]] > h[s])
            out[i] += v[a - inner]
            out[i + 1] += v[b - inner]
            out[i + 2] += v[c - inner]
            out[i + 3] += v[d - inner]
            out[i + 4] += v[p - inner]
            out[i + 5] += v[q - inner]
            out[i + 6] += v[r - inner]
            out[i + 7] += v[s - inner]
        for i in range(whole, count):
            a = 0
            while a < inner:
                a = 2 * a + 1 + (x[i, f[a]] > h[a])
            out[i] += v[a - inner]


@lean_kernel
def score_steps(trees, x, column, count, out):
    """Write the scores of one row ``x``, float32 ``[width]``, with 0, 1, … ``count - 1`` in ``column``.

    They are those of ``score_batch`` over these rows, to the bit. Each tree is walked once for each leaf that any of
    them falls into, which are few: neighbours part only where ``column`` is tested.
    """
    feature, threshold, leaf = trees.feature, trees.threshold, trees.leaf
    inner = feature.shape[1]
    for k in range(count):
        out[k] = trees.base[0]
    for t in range(feature.shape[0]):
        f, h, v = feature[t], threshold[t], leaf[t]
        low = 0
        while low < count:
            x[column] = low
            high = count  # from here on it may be another leaf
            a = 0
            while a < inner:
                if x[f[a]] > h[a]:
                    a = 2 * a + 2
                else:
                    if f[a] == column and h[a] < high - 1:
                        high = int(h[a]) + 1
                    a = 2 * a + 1
            for k in range(low, high):
                out[k] += v[a - inner]
            low = high


@lean_kernel
def score_columns(trees, x, count, out):
    """Do what ``score_batch`` does, for trees of depth 2 and ``x`` stored column by column.

    With all three tests of a tree made for each row, rows differ in nothing but the leaf that is selected, and a
    processor does eight or sixteen of them at once.
    """
    feature, threshold, leaf = trees.feature, trees.threshold, trees.leaf
    for i in range(count):
        out[i] = trees.base[0]
    for t in range(feature.shape[0]):
        root, left, right = x[:, feature[t, 0]], x[:, feature[t, 1]], x[:, feature[t, 2]]
        low, middle, high = threshold[t, 1], threshold[t, 0], threshold[t, 2]
        a, b, c, d = leaf[t, 0], leaf[t, 1], leaf[t, 2], leaf[t, 3]
        for i in range(count):
            below = b if left[i] > low else a
            above = d if right[i] > high else c
            out[i] += above if root[i] > middle else below
