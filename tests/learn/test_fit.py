"""From a trace to a policy: what ``fit`` returns, refuses, and is worth."""

from pathlib import Path

import numpy as np
import pytest

import kvpredict as kvp
from kvpredict import KvpredictError, Trace, UnknownName
from kvpredict.artifact import load_artifact
from kvpredict.core.policy import Policy
from kvpredict.core.table import hash_key
from kvpredict.learn import learner
from kvpredict.learn.evaluate import calibration, metrics
from kvpredict.learn.learner import NothingToLearn
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.learned import Learned


def two_kinds(n: int = 40_000, seed: int = 0) -> Trace:
    """Popular keys among one-hit wonders, told apart by nothing but their history, and by a column that says so."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, 1001) ** 0.8
    popular = rng.choice(1000, n, p=popularity / popularity.sum())
    once = rng.random(n) < 0.5
    keys = np.where(once, 10_000 + np.arange(n), popular)
    keys = np.array([hash_key(np.int64(key)) for key in keys])  # so that neighbouring keys have nothing in common
    return Trace.from_keys(keys, kind=once.astype(float), name="two kinds")


@pytest.fixture(scope="module")
def fitted() -> Learned:
    return kvp.fit(two_kinds().head(0.5), 150, learner="lightgbm", cv=3)


def test_beats_lru_on_later_requests(fitted: Learned) -> None:
    trace = two_kinds()
    ours = kvp.simulate(trace, fitted, 150, warmup=0.5)
    assert ours.object_miss_ratio < 0.97 * kvp.simulate(trace, "lru", 150, warmup=0.5).object_miss_ratio
    assert ours.object_miss_ratio > kvp.simulate(trace, "belady", 150, warmup=0.5).object_miss_ratio


def test_report(fitted: Learned) -> None:
    report = fitted.report
    assert report.metrics["roc_auc"] > 0.7
    assert report.metrics["log_loss"] < report.metrics["base_log_loss"]
    assert 0 < report.metrics["base_rate"] < 1
    assert np.isclose(sum(report.importance.values()), 1)
    assert len(report.folds) == 3
    assert all(fold["roc_auc"] > 0.5 for fold in report.folds)
    assert sum(report.calibration["count"]) == report.metrics["rows"]
    gaps = np.abs(np.array(report.calibration["predicted"]) - report.calibration["observed"])
    assert np.average(gaps, weights=report.calibration["count"]) < 0.15
    metadata = fitted.artifact.metadata
    assert metadata["trace"]["fingerprint"] == two_kinds().head(0.5).fingerprint
    assert metadata["settings"]["learner"] == "lightgbm"
    assert metadata["versions"]["lightgbm"]


def test_same_arguments_same_policy(fitted: Learned) -> None:
    again = kvp.fit(two_kinds().head(0.5), 150, learner="lightgbm")
    for a, b in zip(fitted.artifact.scorer, again.artifact.scorer, strict=True):
        assert a.tobytes() == b.tobytes()


def test_admission_by_an_extra_column_beats_its_base_and_survives_saving(tmp_path: Path) -> None:
    trace = two_kinds()
    informed = kvp.fit(trace.head(0.5), 150, mode="admit", base="lru", extra=["kind"])
    assert informed.report.importance["kind"] > 0
    misses = kvp.simulate(trace, informed, 150, warmup=0.5).misses
    assert misses < 0.95 * kvp.simulate(trace, "lru", 150, warmup=0.5).misses
    loaded = kvp.load_policy(informed.save(tmp_path / "p"))
    assert loaded.threshold == informed.threshold
    assert kvp.simulate(trace, loaded, 150, warmup=0.5).misses == misses


def test_eviction_and_admission_together_beat_eviction_alone(fitted: Learned) -> None:
    trace = two_kinds()
    both = kvp.fit(trace.head(0.5), 150, mode="both")
    ours = kvp.simulate(trace, both, 150, warmup=0.5).misses
    assert ours < kvp.simulate(trace, fitted, 150, warmup=0.5).misses


def test_sized_objects_by_bytes() -> None:
    rng = np.random.default_rng(1)
    base = two_kinds(30_000)
    sizes = rng.choice([100, 1000, 5000], base.unique)[base.ids]
    trace = Trace(base.keys, sizes=sizes)
    capacity = trace.capacity(0.02, "bytes")
    fitted = kvp.fit(trace.head(0.5), capacity, unit="bytes")
    ours = kvp.simulate(trace, fitted, capacity, unit="bytes", warmup=0.5)
    lru = kvp.simulate(trace, "lru", capacity, unit="bytes", warmup=0.5)
    assert ours.object_miss_ratio < lru.object_miss_ratio


def test_the_better_guarded_policy_is_chosen_on_the_last_part_and_says_so(tmp_path: Path) -> None:
    trace = two_kinds()
    best = kvp.fit(trace.head(0.5), 150, candidates=48)
    settings = best.report.settings
    compared = settings["compared"]
    assert set(compared) == {"learned", "guarded", "guarded with a prior"}
    assert isinstance(best, Guarded)
    assert best.candidates == 48
    assert settings["chosen"] == min(("guarded", "guarded with a prior"), key=compared.__getitem__)
    assert (best.prior is None) == (settings["chosen"] == "guarded")
    cut, cold = int(20_000 * 0.75), Guarded(candidates=48)
    assert compared["guarded"] == kvp.simulate(trace.head(0.5), cold, 150, warmup=cut).object_miss_ratio
    folder = best.save(tmp_path / "best")
    assert load_artifact(folder)[0].metadata["settings"] == settings
    loaded = kvp.load_policy(folder)
    assert kvp.simulate(trace, loaded, 150, warmup=0.5).misses == kvp.simulate(trace, best, 150, warmup=0.5).misses


def test_a_frozen_model_is_chosen_only_where_it_may_be_and_is_better() -> None:
    trace = two_kinds().head(0.5)
    chosen = kvp.fit(trace, 150, learner=learner("best", unguarded=True, hedge=0.0))
    settings = chosen.report.settings
    assert settings["chosen"] == min(settings["compared"], key=settings["compared"].__getitem__)
    assert isinstance(chosen, Learned) == (settings["chosen"] == "learned")
    # A loop, where what was used longest ago comes back next, and then keys that are soon forgotten for good.
    loop = np.arange(30_000) % 400
    drift = 1000 + np.arange(10_000) // 4 + np.random.default_rng(0).geometric(0.02, 10_000)
    moved = Trace.from_keys(np.array([hash_key(np.int64(key)) for key in np.concatenate([loop, drift])]))
    assert kvp.fit(moved, 200, learner=learner("best", unguarded=True)).report.settings["chosen"] != "learned"


def test_a_shift_after_all_that_was_seen_costs_little() -> None:
    # A loop and look-ups, so short that guarded has hardly begun to learn and the frozen model is the best by far; then
    # half of all requests are for keys seen once.
    rng = np.random.default_rng(1)
    weights = 1.0 / np.arange(1, 3001)
    lookups = 100_000 + rng.choice(3000, 20_000, p=weights / weights.sum())
    keys = np.where(rng.random(20_000) < 0.5, np.arange(20_000) % 700, lookups)
    keys[10_000:] = np.where(rng.random(10_000) < 0.5, 10**6 + np.arange(10_000), keys[10_000:])
    trace = Trace.from_keys(keys)

    def later(chosen: Policy | str) -> int:
        return kvp.simulate(trace, chosen, 400, warmup=0.5).misses

    best, frozen = (kvp.fit(trace.head(0.5), 400, learner=name) for name in ("best", "lightgbm"))
    compared = best.report.settings["compared"]
    assert compared["learned"] < 0.96 * min(compared["guarded"], compared["guarded with a prior"])
    heuristic = min(later(name) for name in ("lru", "s3fifo", "lhd", "popularity", "arc", "lirs"))
    assert later(best) < 1.02 * heuristic
    assert later(frozen) > 1.08 * heuristic


def test_where_nothing_can_be_learned_the_default_learns_while_it_serves(tmp_path: Path) -> None:
    loop = Trace.from_keys(np.arange(20_000) % 500)
    with pytest.raises(NothingToLearn, match="too few decisions"):
        kvp.fit(loop, 100, learner="lightgbm")
    with pytest.raises(NothingToLearn, match="too few decisions"):
        kvp.fit(loop, 100, mode="both")
    for past, capacity, why in ((loop, 100, "too few decisions"), (loop, 500, "holds all of its 500 keys")):
        best = kvp.fit(past, capacity)
        assert isinstance(best, Guarded)
        assert why in best.report.settings["nothing_learned"]
        assert best.report.settings["chosen"] in best.report.settings["compared"]
        assert kvp.load_policy(best.save(tmp_path / "p")).name == "guarded"


def test_parameters_go_to_the_policy_that_is_returned() -> None:
    trace = two_kinds(10_000)
    assert kvp.fit(trace, 50, learner="logistic", history=1.0, candidates=4, batch=1).candidates == 4
    with pytest.raises(KvpredictError, match="policy 'guarded': history must be 2 to 1024"):
        kvp.fit(trace, 50, history=1.0)


def test_further_columns_that_nothing_would_look_at_are_refused() -> None:
    with pytest.raises(KvpredictError, match=r"extra=\['kind'\] would have no effect.*learner='lightgbm'"):
        kvp.fit(two_kinds(2000), 10, extra=["kind"])


def test_costs_are_lowered_where_they_count() -> None:
    rng = np.random.default_rng(0)
    weights = np.arange(1, 5001) ** -0.8
    keys = rng.choice(5000, 40_000, p=weights / weights.sum())
    trace = Trace(keys.astype(np.int64), columns={"cost": np.where(keys % 2 == 0, 0.01, 0.2)})
    dear = kvp.fit(trace.head(0.5), 500, learner="lightgbm", objective="cost")
    many = kvp.fit(trace.head(0.5), 500, learner="lightgbm")
    costs, counts = (kvp.simulate(trace, policy, 500, warmup=0.5) for policy in (dear, many))
    assert costs.miss_cost < 0.95 * counts.miss_cost
    assert counts.misses < costs.misses
    online = kvp.simulate(trace, kvp.policy("guarded", objective="cost"), 500, warmup=0.5)
    assert online.miss_cost < 0.95 * kvp.simulate(trace, "guarded", 500, warmup=0.5).miss_cost


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(KvpredictError, match="too few"):
        kvp.fit(Trace.from_keys(range(100)), 10, learner="lightgbm")
    with pytest.raises(KvpredictError, match="holds all of its 50 keys"):
        kvp.fit(Trace.from_keys(np.arange(5000) % 50), 100, learner="lightgbm")
    with pytest.raises(KvpredictError, match="holds all of its 0 keys"):
        kvp.fit(Trace.from_keys([]), 100)
    with pytest.raises(KvpredictError, match="expected a Trace, got str"):
        kvp.fit("my.csv", 100)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match=r"rows must be at least 200, got -5"):
        kvp.fit(Trace.from_keys(range(100)), 10, rows=-5)


def test_bad_arguments_are_refused() -> None:
    trace = two_kinds(2000)
    with pytest.raises(UnknownName, match="lightgbm"):
        kvp.fit(trace, 10, learner="lightgmb")
    with pytest.raises(UnknownName, match="evict"):
        kvp.fit(trace, 10, mode="evic")
    with pytest.raises(UnknownName, match="kind"):
        kvp.fit(trace, 10, extra=["kinds"])
    with pytest.raises(UnknownName, match="bytes"):
        kvp.fit(trace, 10, learner="tree", unit="Bytes")
    for bad in (
        {"validation": 1.0},
        {"horizon": 0},
        {"rounds": 0},
        {"rows": 3},
        {"cv": -1},
        {"rounds": 1.5},
        {"cv": "2"},
        {"validation": None},
        {"seed": "x"},
    ):
        with pytest.raises(KvpredictError, match=next(iter(bad))):
            kvp.fit(trace, 10, **bad)


def test_metrics_by_hand() -> None:
    y = np.array([0, 1, 1, 0], np.uint8)
    found = metrics(y, np.array([0.1, 0.8, 0.4, 0.6]), 0.5)
    assert found["roc_auc"] == 0.75
    assert np.isclose(found["base_log_loss"], np.log(2))
    assert np.isclose(found["log_loss"], -np.log([0.9, 0.8, 0.4, 0.4]).mean())
    assert np.isnan(metrics(np.ones(3, np.uint8), np.full(3, 0.5), 0.5)["roc_auc"])
    bins = calibration(y, np.array([0.1, 0.8, 0.4, 0.6]), bins=2)
    assert bins == {"predicted": [0.25, pytest.approx(0.7)], "observed": [0.5, 0.5], "count": [2.0, 2.0]}
