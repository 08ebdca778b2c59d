"""Boosted trees fitted in place: against a brute-force split, their own residuals, and scikit-learn."""

import numpy as np
import pytest

from kvpredict.scorers import predict_raw
from kvpredict.scorers.boosting import BINS, LEAST, Training, empty_trees, fit_trees, make_training
from kvpredict.scorers.trees import Trees


def fitted(x: np.ndarray, y: np.ndarray, trees: int = 24, depth: int = 2, rate: float = 0.2) -> tuple[Trees, Training]:
    training = make_training(len(x) + 5, x.shape[1], depth)
    training.x[: len(x)], training.y[: len(x)] = x, y
    training.x[len(x) :] = np.nan  # what lies behind the rows is not looked at
    model = empty_trees(trees, depth)
    fit_trees(training, len(x), model, rate)
    return model, training


def data(seed: int, rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.exponential(1.0, (rows, 5)).astype(np.float32)
    x[:, 3] = rng.integers(0, 4, rows)  # few distinct values
    x[:, 4] = 1e6  # one
    y = np.log1p(x[:, 0]) * (x[:, 3] > 1) - 0.3 * x[:, 1] + rng.normal(0, 0.1, rows)
    return x, y.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tree", [0, 1])
def test_a_split_is_the_best_of_all_borders_for_every_other_row(tree: int, seed: int) -> None:
    """The second tree is the first to see the odd rows; it splits what the first one left."""
    all_x, all_y = data(seed)
    model, training = fitted(all_x, all_y, trees=1 + tree, depth=1, rate=1.0)
    all_rest = all_y - all_y.mean()
    if tree:
        all_rest -= model.leaf[0][(all_x[:, model.feature[0, 0]] > model.threshold[0, 0]).astype(int)]
    x, rest = all_x[tree::2], all_rest[tree::2]
    best = max(
        (
            sum(part.sum() ** 2 / part.size for part in (rest[x[:, j] <= t], rest[x[:, j] > t])),
            -j,
            -b,
        )
        for j in range(x.shape[1])
        for b, t in enumerate(training.edges[j])
        if min((x[:, j] <= t).sum(), (x[:, j] > t).sum()) >= LEAST
    )
    column = int(model.feature[tree, 0])
    left = x[:, column] <= model.threshold[tree, 0]
    gain = sum(part.sum() ** 2 / part.size for part in (rest[left], rest[~left]))
    assert gain == pytest.approx(best[0], rel=1e-6)
    left = all_x[:, column] <= model.threshold[tree, 0]
    assert model.leaf[tree] == pytest.approx([all_rest[left].mean(), all_rest[~left].mean()], abs=1e-5)


def test_what_is_left_over_is_what_the_trees_do_not_predict() -> None:
    x, y = data(7)
    model, training = fitted(x, y)
    predicted = predict_raw(model, x)
    assert training.rest[: len(x)] == pytest.approx(y - predicted, abs=1e-4)
    assert np.mean((y - predicted) ** 2) < 0.2 * np.var(y)


def test_as_good_as_scikit_learn_at_the_same_settings() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="compares with scikit-learn")
    x, y = data(1)
    later_x, later_y = data(2)
    peer = ensemble.HistGradientBoostingRegressor(
        max_iter=24, max_depth=2, learning_rate=0.2, min_samples_leaf=LEAST, max_bins=BINS, early_stopping=False
    )
    theirs = np.mean((later_y - peer.fit(x, y).predict(later_x)) ** 2)
    ours = np.mean((later_y - predict_raw(fitted(x, y)[0], later_x)) ** 2)
    assert ours < 1.05 * theirs


def test_degenerate_data() -> None:
    same = np.ones((300, 3), np.float32)
    model, _ = fitted(same, np.full(300, 2.5, np.float32))
    assert predict_raw(model, same) == pytest.approx(2.5)
    few, y = data(0, rows=LEAST)  # no split leaves enough on both sides
    model, _ = fitted(few, y)
    assert np.isinf(model.threshold).all()
    assert predict_raw(model, few) == pytest.approx(y.mean(), abs=1e-5)
    model, _ = fitted(few[:0], y[:0])
    assert predict_raw(model, few) == pytest.approx(0.0)


def test_borders_split_the_rows_evenly() -> None:
    x, y = data(5)
    _, training = fitted(x, y)
    counts = np.bincount(training.bins[: len(x), 0], minlength=BINS)
    assert counts.max() < 2.5 * len(x) / BINS
    assert counts.min() > 0.3 * len(x) / BINS
