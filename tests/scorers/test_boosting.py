"""Boosted times per use: against a brute-force split, their own expectations, known rates, and scikit-learn."""

import numpy as np
import pytest

from kvpredict.core.jit import kernel
from kvpredict.scorers import predict_raw
from kvpredict.scorers.boosting import (
    BINS,
    FINE,
    LEAST,
    SOFT,
    Ranks,
    Training,
    empty_ranks,
    fit_far,
    fit_ranks,
    make_training,
    rank_columns,
)
from kvpredict.scorers.trees import Trees

WIDTH, NEAR = 5, 0.25


@kernel
def fit(training, count, ranks, rate, both):
    if both:
        fit_ranks(training, count, ranks, rate, NEAR)
    else:
        fit_far(training, count, ranks.far, rate)


def filled(x: np.ndarray, time: np.ndarray, used: np.ndarray, depth: int = 2) -> Training:
    training = make_training(len(x) + 5, x.shape[1], depth)
    n = len(x)
    training.x[:n], training.time[:n], training.used[:n] = x, time, used
    training.x[n:] = np.nan  # what lies behind the rows is not looked at
    training.time[n:] = np.nan
    return training


def fitted(
    x: np.ndarray, time: np.ndarray, used: np.ndarray, trees: int = 24, depth: int = 2, rate: float = 0.2
) -> tuple[Trees, Training]:
    training = filled(x, time, used, depth)
    model = empty_ranks(trees, 1, depth)
    fit(training, len(x), model, rate, False)
    return model.far, training


def rows_of(seed: int, rows: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.exponential(1.0, (rows, WIDTH)).astype(np.float32)
    x[:, 3] = rng.integers(0, 4, rows)  # few distinct values
    x[:, 4] = 1e6  # one
    return x


def data(seed: int, rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, how long each was watched, whether to a use, and the true log of its time per use."""
    rng = np.random.default_rng(100 + seed)
    x = rows_of(seed, rows)
    log_time = np.log1p(x[:, 0]) * (x[:, 3] > 1) + 0.5 * x[:, 1]
    time = rng.exponential(np.exp(log_time))
    watched = rng.uniform(0.0, 4.0, rows)
    return x, np.minimum(time, watched), time <= watched, log_time


@pytest.mark.parametrize(("seed", "rows"), [(0, 4000), (1, 4000), (2, 800), (3, 12_000)])
@pytest.mark.parametrize("tree", [0, 1])
def test_a_split_is_the_best_of_all_borders_for_every_other_row(tree: int, seed: int, rows: int) -> None:
    """The second tree is the first to see the odd rows; it splits what the first one left."""
    all_x, time, used, _ = data(seed, rows)
    model, training = fitted(all_x, time, used, trees=1 + tree, depth=1, rate=1.0)
    expected = (time + SOFT) * (used.sum() + 0.5) / ((time + SOFT).sum() + SOFT)
    if tree:
        expected *= np.exp(-model.leaf[0][(all_x[:, model.feature[0, 0]] > model.threshold[0, 0]).astype(int)])
    x, beyond, mass = all_x[tree::2], (used - expected)[tree::2], expected[tree::2]
    least = LEAST * used.mean()
    best = max(
        (sum(beyond[part].sum() ** 2 / mass[part].sum() for part in (x[:, j] <= t, x[:, j] > t)), -j, -b)
        for j in range(x.shape[1])
        for b, t in enumerate(training.edges[j])
        if min(mass[x[:, j] <= t].sum(), mass[x[:, j] > t].sum()) > least
    )
    column = int(model.feature[tree, 0])
    left = x[:, column] <= model.threshold[tree, 0]
    gain = sum(beyond[part].sum() ** 2 / mass[part].sum() for part in (left, ~left))
    assert gain == pytest.approx(best[0], rel=1e-4)
    left = all_x[:, column] <= model.threshold[tree, 0]
    besides = {800: 93.0, 4000: 61.0, 12_000: 1.0}[rows]  # the less, the more rows there are
    leaves = [np.log((besides + expected[part].sum()) / (besides + used[part].sum())) for part in (left, ~left)]
    assert model.leaf[tree] == pytest.approx(leaves, abs=1e-4)


def in_halves(rows: np.ndarray) -> np.ndarray:
    """Return rows in the order in which a fit keeps them: the even ones, then the odd ones."""
    return np.concatenate([rows[::2], rows[1::2]])


def found_beyond(training: Training, count: int, used: np.ndarray) -> np.ndarray:
    """Return the uses beyond those expected that trees are fitted to, which are kept in steps."""
    both = training.both[:count]
    assert (both & 0xFFFFFFFF) / FINE * (used.sum() + 0.5) == pytest.approx(training.expected[:count], abs=1e-4)
    return (both >> 32) / FINE * (used.sum() + 0.5)


def test_trees_know_what_they_expect() -> None:
    x, time, used, _ = data(7)
    model, training = fitted(x, time, used)
    expected = (time + SOFT) * np.exp(-predict_raw(model, x))
    assert training.expected[: len(x)] == pytest.approx(in_halves(expected), rel=1e-4)
    assert found_beyond(training, len(x), used) == pytest.approx(in_halves(used - expected), abs=1e-4)
    assert expected.sum() == pytest.approx(used.sum(), rel=0.02)


def test_rates_are_found_although_half_of_the_rows_were_not_watched_to_their_use() -> None:
    x, time, used, truth = data(1, 20_000)
    assert 0.4 < used.mean() < 0.6
    later_x, _, _, later = data(2)
    error = predict_raw(fitted(x, time, used, trees=48)[0], later_x) - later
    assert np.sqrt(np.mean((error - error.mean()) ** 2)) < 0.3 * truth.std()
    assert abs(error.mean()) < 0.15  # SOFT makes times a little longer


def test_as_good_as_scikit_learn_at_the_same_settings() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="compares with scikit-learn")
    x, time, used, _ = data(1)
    later_x, later_time, later_used, _ = data(2)
    peer = ensemble.HistGradientBoostingRegressor(
        loss="poisson", max_iter=24, max_depth=2, learning_rate=0.2, min_samples_leaf=LEAST, early_stopping=False,
        max_bins=BINS,
    )  # fmt: skip
    peer.fit(x, used / (time + SOFT), sample_weight=time + SOFT)

    def loss(rate: np.ndarray) -> float:
        return float(np.mean(rate * (later_time + SOFT) - later_used * np.log(rate)))

    constant = loss(np.full(len(later_x), used.sum() / (time + SOFT).sum()))
    theirs = constant - loss(peer.predict(later_x))
    ours = constant - loss(np.exp(-predict_raw(fitted(x, time, used)[0], later_x)))
    assert theirs > 0.0
    assert ours > 0.95 * theirs


def test_weights_count_as_rows() -> None:
    x, time, used, _ = data(3, 1000)
    training = filled(x, time, used)
    training.weight[:500] = 0.0
    model = empty_ranks(8, 1, 2)
    fit(training, len(x), model, 0.2, False)
    other = x.copy()
    other[:500] = x[500:]
    time, used = time.copy(), used.copy()
    time[:500], used[:500] = time[500:], used[500:]
    twin = filled(other, time, used)
    twin.weight[:500] = 0.0
    same = empty_ranks(8, 1, 2)
    fit(twin, len(x), same, 0.2, False)
    assert model.far.base[0] == pytest.approx(same.far.base[0])


def burst(seed: int, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of objects used either soon or never, and of others used some time: the former have more to offer."""
    rng = np.random.default_rng(seed)
    x = rows_of(seed, rows)
    soon = x[:, 0] > 1.0
    some_day = rng.exponential(3.0, rows)
    time = np.where(soon, np.where(rng.random(rows) < 0.3, rng.uniform(0, 0.2, rows), 1e9), some_day)
    return x, np.minimum(time, 4.0), time <= 4.0, soon


def test_near_trees_see_what_is_used_soon_or_never() -> None:
    x, time, used, soon = burst(0)
    training = filled(x, time, used)
    ranks = empty_ranks(24, 8, 2)
    fit(training, len(x), ranks, 0.2, True)
    far, near = predict_raw(ranks.far, x), predict_raw(ranks.near, x)
    assert far[soon].mean() > far[~soon].mean()
    assert near[soon].mean() < -1.0
    assert near[~soon].mean() > -0.5
    ranked = ranks_of(ranks, x)
    assert ranked == pytest.approx(far + np.minimum(near, 0.0))
    assert ranked[soon].mean() < ranked[~soon].mean()
    # What remains is uses within NEAR, beyond those expected there.
    expected = (np.minimum(time, NEAR) + SOFT) * np.exp(-far - near)
    assert training.expected[: len(x)] == pytest.approx(in_halves(expected), rel=1e-3)


@kernel
def rank(ranks, x, count, out, spare):
    rank_columns(ranks, x, count, out, spare)


def ranks_of(ranks: Ranks, x: np.ndarray) -> np.ndarray:
    out = np.zeros(len(x))
    rank(ranks, np.asfortranarray(x), len(x), out, np.zeros(len(x)))
    return out


def test_degenerate_data() -> None:
    same = np.ones((300, 3), np.float32)
    model, _ = fitted(same, np.full(300, 2.0), np.ones(300))
    assert predict_raw(model, same) == pytest.approx(np.log(2.0 + SOFT), abs=0.02)
    few, time, used, _ = data(0, rows=LEAST)  # no split leaves enough on both sides
    model, _ = fitted(few, time, used)
    assert np.isinf(model.threshold).all()
    x, time, used, _ = data(0)
    for both in (False, True):
        for none in (np.zeros(len(x)), np.ones(len(x))):  # nothing is ever used; all is at once
            ranks = empty_ranks(24, 8, 2)
            fit(filled(x, time * (1 - none), none), len(x), ranks, 0.2, both)
            assert np.isfinite(ranks_of(ranks, x)).all()
    ranks = empty_ranks(24, 8, 2)
    fit(filled(x[:0], time[:0], used[:0]), 0, ranks, 0.2, True)
    assert np.isfinite(ranks_of(ranks, x)).all()


def test_borders_split_the_rows_evenly() -> None:
    x, time, used, _ = data(5)
    _, training = fitted(x, time, used)
    counts = np.bincount(training.bins[0, : len(x)], minlength=BINS)
    assert counts.max() < 2.5 * len(x) / BINS
    assert counts.min() > 0.3 * len(x) / BINS
