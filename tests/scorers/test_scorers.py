"""Scorers against slow twins written from their definitions."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict import ArtifactError, KvpredictError
from kvpredict.core.arithmetic import compress
from kvpredict.scorers import KINDS, predict_raw
from kvpredict.scorers.linear import Linear
from kvpredict.scorers.mlp import MLP
from kvpredict.scorers.trees import MAX_DEPTH, Node, make_trees, score_columns, score_steps

WIDTH = 5


def random_tree(rng: np.random.Generator, depth: int) -> Node:
    if depth == 0 or rng.random() < 0.2:
        return Node(value=float(rng.normal()))
    return Node(
        feature=int(rng.integers(WIDTH)),
        threshold=float(rng.normal()),
        left=random_tree(rng, depth - 1),
        right=random_tree(rng, depth - 1),
    )


def full_tree(rng: np.random.Generator) -> Node:
    left, right = (Node(0.0, 1, float(rng.normal()), Node(float(rng.normal())), Node(1.0)) for _ in range(2))
    return Node(feature=2, threshold=float(rng.normal()), left=left, right=right)


def naive_tree(node: Node, row: np.ndarray) -> float:
    while node.left is not None and node.right is not None:
        node = node.left if float(row[node.feature]) <= node.threshold else node.right
    return node.value


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_trees_of_depth_2_score_columns_as_they_score_rows(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    trees = make_trees([full_tree(rng), *(random_tree(rng, 2) for _ in range(7))], base=0.5)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    out = np.zeros(rows)
    score_columns(trees, np.asfortranarray(x), rows, out)
    np.testing.assert_array_equal(out, predict_raw(trees, x))


@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_steps_of_one_column_score_as_rows_of_their_own(seed: int, depth: int, steps: int) -> None:
    rng = np.random.default_rng(seed)

    def stepped(node: Node) -> Node:
        """Move the thresholds to where steps are parted, onto whole numbers too."""
        if node.left is None or node.right is None:
            return node
        threshold = float(rng.integers(-2, 2 * steps + 2)) / 2
        return node._replace(threshold=threshold, left=stepped(node.left), right=stepped(node.right))

    trees = make_trees([stepped(random_tree(rng, depth)) for _ in range(9)], base=0.5)
    column = int(rng.integers(WIDTH))
    rows = np.tile(rng.uniform(-2, steps, WIDTH).astype(np.float32), (steps, 1))
    rows[:, column] = np.arange(steps)
    out = np.zeros(steps)
    score_steps(trees, rows[0].copy(), column, steps, out)
    np.testing.assert_array_equal(out, predict_raw(trees, rows))


@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_trees(seed: int, depth: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    roots = [random_tree(rng, depth) for _ in range(3)]
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    scorer = make_trees(roots, base=0.25)
    KINDS["trees"].check(scorer, WIDTH)
    assert np.allclose(predict_raw(scorer, x), [0.25 + sum(naive_tree(r, row) for r in roots) for row in x], atol=1e-12)


def test_a_threshold_between_two_floats_splits_as_the_double_does() -> None:
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    for threshold in (float(low), (float(low) * 3 + float(high)) / 4, (float(low) + float(high) * 3) / 4):
        scorer = make_trees([Node(threshold=threshold, left=Node(value=-1.0), right=Node(value=1.0))])
        assert predict_raw(scorer, np.array([[low], [high]], np.float32)).tolist() == [-1.0, 1.0]


def test_a_tree_too_deep_is_refused() -> None:
    node = Node(value=1.0)
    for _ in range(MAX_DEPTH + 1):
        node = Node(threshold=0.0, left=node, right=Node())
    with pytest.raises(KvpredictError, match="max_depth"):
        make_trees([node])


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_compress_is_a_signed_log1p(x: float) -> None:
    assert math.isclose(compress(x), math.copysign(math.log1p(abs(x)), x), rel_tol=1e-6, abs_tol=1e-8)


def test_linear() -> None:
    rng = np.random.default_rng(1)
    x = rng.exponential(100, (7, WIDTH)).astype(np.float32)
    weight = rng.normal(size=WIDTH)
    assert np.allclose(predict_raw(Linear(weight, np.array([0.5])), x), np.log1p(x.astype(float)) @ weight + 0.5)


def test_mlp() -> None:
    rng = np.random.default_rng(2)
    shapes = ((WIDTH,), (WIDTH,), (4, WIDTH), (4,), (3, 4), (3,), (3,), (1,))
    m = MLP(*(rng.normal(size=s).astype(np.float32) for s in shapes))
    x = rng.exponential(10, (9, WIDTH)).astype(np.float32)
    first = np.maximum((np.log1p(x.astype(float)) - m.mean) * m.scale @ m.w1.T.astype(float) + m.b1, 0)
    wanted = np.maximum(first @ m.w2.T + m.b2, 0) @ m.w3 + m.b3
    assert np.allclose(predict_raw(m, x), wanted, atol=1e-6)


def test_arrays_that_do_not_fit_are_refused() -> None:
    trees = make_trees([Node(feature=4, threshold=0.0, left=Node(), right=Node())])
    linear = Linear(np.zeros(WIDTH), np.zeros(1))
    mlp = MLP(*(np.zeros(s, np.float32) for s in ((5,), (5,), (4, 5), (4,), (3, 4), (3,), (3,), (1,))))
    for kind, good, bad in (
        ("trees", trees, trees._replace(leaf=trees.leaf[:, 1:])),
        ("trees", trees, trees._replace(leaf=trees.leaf * np.nan)),
        ("linear", linear, Linear(np.zeros(WIDTH + 1), np.zeros(1))),
        ("mlp", mlp, mlp._replace(w2=mlp.w2.T)),
        ("mlp", mlp, mlp._replace(b3=mlp.b3 + np.inf)),
    ):
        KINDS[kind].check(good, WIDTH)
        with pytest.raises(ArtifactError):
            KINDS[kind].check(bad, WIDTH)
    with pytest.raises(ArtifactError, match="4 features"):
        KINDS["trees"].check(trees, 4)
    with pytest.raises(KvpredictError, match="kind of scorer"):
        predict_raw((1, 2), np.zeros((1, 1)))


def test_a_kernel_that_allocates_compiles_first_from_within_a_lean_one() -> None:
    """Numba hands options down to what it compiles on the way; the net's buffers need reference counts all the same."""
    code = (
        "import numpy as np, kvpredict; from kvpredict.artifact import Artifact\n"
        "from kvpredict.scorers.mlp import MLP\n"
        "from kvpredict.features.schema import Schema; from kvpredict.policies.learned import Learned\n"
        "w = Schema().width; f = lambda *n: np.ones(n, np.float32)\n"
        "net = MLP(f(w), f(w), f(3, w), f(3), f(2, 3), f(2), f(2), f(1))\n"
        "trace = kvpredict.Trace.from_keys(np.arange(300) % 7)\n"
        "print(kvpredict.simulate(trace, Learned(Artifact(net, Schema())), 5).misses)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < 300
