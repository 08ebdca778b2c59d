"""A prior for guarded: what it is fitted to, what it changes in a cold cache, and what cannot be one."""

from pathlib import Path

import numpy as np
import pytest

import kvpredict as kvp
from kvpredict import KvpredictError, Trace
from kvpredict.artifact import Artifact
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn.learner import NothingToLearn
from kvpredict.learn.online import decisions, prior
from kvpredict.policies.guarded import SHIPPED, Guarded
from kvpredict.scorers.trees import Node, make_trees


def zipf(n: int = 30_000, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, 5001) ** 0.8
    return Trace.from_keys(rng.choice(5000, n, p=weights / weights.sum()))


def test_decisions_are_rows_and_how_long_they_were_watched() -> None:
    x, time, used = decisions(zipf(), 300, Guarded(horizon=3.0))
    assert x.shape == (len(time), len(BASE_FEATURES))
    assert 500 < len(time) == len(used) <= 20_000
    assert np.isfinite(x).all()
    assert 0.0 <= time.min() < 0.5
    assert time.max() == 3.0
    assert set(used) == {0.0, 1.0}
    assert time[used == 1].mean() < time[used == 0].mean()


def test_with_a_prior_the_model_decides_before_the_first_fit() -> None:
    taught = Guarded(prior=prior([(zipf(), 300)]), guard=False)
    later = zipf(1900, seed=1)  # the first fit is after 2,000 requests
    cold = kvp.simulate(later, Guarded(guard=False), 100)
    warm = kvp.simulate(later, taught, 100)
    assert cold.account["counts"]["fits"] == warm.account["counts"]["fits"] == 0
    assert warm.misses < cold.misses


def test_a_prior_is_saved_with_its_policy_and_a_policy_without_one_stays_without(tmp_path: Path) -> None:
    taught = Guarded(prior=prior([(zipf(), 300)], metadata={"prior": "zipf"}), candidates=32)
    for policy in (taught, Guarded(leaders="lru+s3fifo")):
        loaded = kvp.load_policy(policy.save(tmp_path / "p"))
        assert loaded.params() == policy.params()
        assert kvp.simulate(zipf(seed=1), loaded, 100).misses == kvp.simulate(zipf(seed=1), policy, 100).misses
    assert taught.params()["prior"] == "zipf"
    assert kvp.policy("guarded", prior=str(taught.save(tmp_path / "q"))).params()["prior"] == "zipf"


def test_the_shipped_prior_serves() -> None:
    shipped = kvp.policy("guarded", prior="shipped")
    assert SHIPPED.is_dir()
    assert shipped.params()["prior"] == "shipped"
    assert kvp.simulate(zipf(1500), shipped, 100).misses < 1500
    cache: kvp.Cache[int, int] = kvp.Cache(50, shipped)
    for key in range(200):
        cache.put(key, key)
    cache.validate()


def test_what_cannot_be_a_prior_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToLearn, match="too few decisions"):
        prior([(zipf(30), 10)])
    other = Artifact(make_trees([Node(value=1.0)]), Schema())
    with pytest.raises(KvpredictError, match="cannot be its prior"):
        Guarded(prior=other)
    with pytest.raises(KvpredictError, match="must be an Artifact or a path, got int"):
        Guarded(prior=5)
    with pytest.raises(KvpredictError, match="is not a saved policy"):
        Guarded(prior=tmp_path)
