"""The contract of learners, which finds every learner by itself."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kvpredict import KvpredictError, UnknownName
from kvpredict.artifact import Artifact
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn import Learner, learner, learner_names
from kvpredict.scorers import KINDS, kind_of

CONF = Path(__file__).resolve().parents[2] / "kvpredict" / "conf" / "learner"
WIDTH = len(BASE_FEATURES)

every_learner = pytest.mark.parametrize("name", learner_names())


def rows(seed: int, n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of which reuse depends on recency, rate and chance."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(1.0, (n, WIDTH)).astype(np.float32)
    x[rng.random((n, WIDTH)) < 0.1] = 1e6
    odds = 2.0 - 1.5 * np.log1p(x[:, 0]) + np.log1p(np.minimum(x[:, 7], 10)) - np.log1p(np.minimum(x[:, 1], 5))
    return x, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.uint8)


def test_all_are_found() -> None:
    assert set(learner_names()) >= {"logistic", "tree", "forest", "lightgbm", "mlp", "agent"}


@every_learner
def test_the_export_equals_the_librarys_own_prediction(name: str) -> None:
    fitted = learner(name).fit(*rows(1))
    kind_of(fitted.scorer).check(fitted.scorer, WIDTH)
    fresh = rows(2)[0]
    ours = Artifact(fitted.scorer, Schema(), fitted.link).predict(fresh)
    assert np.abs(ours - fitted.predict(fresh)).max() <= 1e-6
    assert ours.min() >= 0
    assert ours.max() <= 1


@every_learner
def test_learns_and_is_reproducible(name: str) -> None:
    x, y = rows(3, 3000)
    first, second = learner(name).fit(x, y, seed=7), learner(name).fit(x, y, seed=7)
    for a, b in zip(first.scorer, second.scorer, strict=True):
        assert a.tobytes() == b.tobytes()
    fresh, truth = rows(4)
    probability = first.predict(fresh)
    brier = ((probability - truth) ** 2).mean()
    assert brier < 0.99 * truth.var()


@every_learner
def test_importance_finds_what_matters(name: str) -> None:
    fitted = learner(name).fit(*rows(5))
    assert fitted.importance.shape == (WIDTH,)
    assert fitted.importance.min() >= 0
    assert np.isclose(fitted.importance.sum(), 1)
    assert fitted.importance[0] > 2 / WIDTH


@every_learner
def test_conf_states_every_parameter_and_its_default(name: str) -> None:
    from omegaconf import OmegaConf

    stated = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(stated, dict)
    made = learner(name)
    assert set(stated) == {"name", *(f.name for f in fields(made))}
    params = {k: v for k, v in stated.items() if k != "name"}
    assert learner(name, **params) == made


@every_learner
def test_bad_parameters_are_refused(name: str) -> None:
    with pytest.raises(UnknownName, match="parameter"):
        learner(name, sparkle=1)
    first = next(iter(f.name for f in fields(learner(name))))
    with pytest.raises(KvpredictError, match=first):
        learner(name, **{first: (0, 0) if first == "hidden" else 0})


@every_learner
def test_a_parameter_of_another_type_is_refused(name: str) -> None:
    for field in fields(learner(name)):
        with pytest.raises(KvpredictError, match=f"learner '{name}': {field.name} must be"):
            learner(name, **{field.name: {}})


def test_an_unknown_learner_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="'lightgbm'"):
        learner("lightgmb")
    assert issubclass(type(learner("tree")), Learner)
    assert set(KINDS) == {"linear", "trees", "mlp"}
