"""The agent: what it exports is what it trained, and it learns to keep what comes back."""

import numpy as np
import pytest

import kvpredict as kvp
from kvpredict import KvpredictError, Trace, UnknownName
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn import learner
from kvpredict.learn.agent import _advantages
from kvpredict.learn.learner import Fitted, Game
from kvpredict.policies.learned import Learned
from kvpredict.scorers import predict_raw
from kvpredict.scorers.mlp import MLP

CAPACITY = 60
SMALL = {"imitation": 8, "updates": 8, "lanes": 8, "steps": 32}


def lasting_and_passing(requests: int, seed: int = 0) -> Trace:
    """Every other request is for one of 80 keys that last; the others pass, after a second request soon after."""
    keys = np.arange(requests) // 4 + 10_000
    keys[0::2] = np.random.default_rng(seed).integers(0, 80, requests // 2)
    return Trace.from_keys(keys)


def start(seed: int = 0) -> Fitted:
    """Return a net that knows nothing, with the scaling of features that are mostly below 10."""
    rng = np.random.default_rng(seed)
    width = len(BASE_FEATURES)
    shapes = ((32, width), (32,), (16, 32), (16,), (16,), (1,))
    layers = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in shapes]
    return Fitted(MLP(np.ones(width, np.float32), np.full(width, 0.5, np.float32), *layers), "logit", np.zeros(0), len)


def game(trace: Trace, judged: list[MLP]) -> Game:
    """A game whose judge likes the latest net best."""

    def judge(scorer: MLP) -> float:
        judged.append(scorer)
        return -len(judged)

    rng = np.random.default_rng(0)
    x = rng.exponential(1.0, (500, len(BASE_FEATURES))).astype(np.float32)
    return Game(trace, CAPACITY, Schema(), 4.0, x, (rng.random(500) < 0.3).astype(np.uint8), judge)


def misses(fitted: Fitted, trace: Trace) -> int:
    from kvpredict.artifact import Artifact

    return kvp.simulate(trace, Learned(Artifact(fitted.scorer, Schema()), batch=4), CAPACITY, warmup=0.5).misses


@pytest.mark.parametrize("phase", [{"updates": 0}, {"imitation": 0}, {"imitation": 0, "credit": "hits"}])
def test_each_phase_alone_learns_an_easy_workload_from_nothing(phase: dict[str, object]) -> None:
    trace = lasting_and_passing(12_000)
    agent = learner("agent", **(SMALL | {"imitation": 25, "updates": 25, "learning_rate": 3e-3} | phase))
    later = lasting_and_passing(12_000, seed=1)
    fitted, curves = agent.play(start(), game(trace, []))
    ours = misses(fitted, later)
    lru, least = (kvp.simulate(later, p, CAPACITY, warmup=0.5).misses for p in ("lru", "belady"))
    assert ours < kvp.simulate(later, "random", CAPACITY, warmup=0.5).misses
    assert lru - ours > 0.2 * (lru - least)
    assert curves["hit_ratio"]["value"][-1] > curves["hit_ratio"]["value"][0]
    if "updates" in phase:
        assert curves["imitation_loss"]["value"][-1] < curves["imitation_loss"]["value"][0]


def test_it_is_reproducible_and_exports_what_was_judged_best() -> None:
    trace = lasting_and_passing(4_000)
    agent = learner("agent", **SMALL)
    judged: list[MLP] = []
    first, curves = agent.play(start(), game(trace, judged), seed=3)
    again, _ = agent.play(start(), game(trace, []), seed=3)
    other, _ = agent.play(start(), game(trace, []), seed=4)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first.scorer, again.scorer, strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first.scorer, other.scorer, strict=True))
    assert curves["validation_miss_ratio"]["step"] == [0, *range(1, 17)]
    x = np.random.default_rng(5).exponential(1.0, (200, len(BASE_FEATURES))).astype(np.float32)
    raw = predict_raw(first.scorer, x)
    assert np.abs(1 / (1 + np.exp(-raw)) - first.predict(x)).max() <= 1e-6
    # As probabilities of reuse they rank as before, and are right on average.
    assert np.corrcoef(raw, predict_raw(judged[-1], x))[0, 1] > 0.9999
    labelled = game(trace, [])
    assert first.predict(labelled.x).mean() == pytest.approx(labelled.y.mean(), abs=0.01)


def test_fit_keeps_what_the_validation_part_likes_best() -> None:
    trace = lasting_and_passing(12_000)
    fitted = kvp.fit(trace.head(0.5), CAPACITY, learner=learner("agent", **SMALL), rows=3000, rounds=1)
    judged = fitted.report.curves["validation_miss_ratio"]
    assert len(judged["value"]) == 17
    assert judged["value"][0] >= min(judged["value"])
    assert fitted.report.metrics["roc_auc"] > 0.6
    assert (
        kvp.simulate(trace, fitted, CAPACITY, warmup=0.5).misses
        < kvp.simulate(trace, "lru", CAPACITY, warmup=0.5).misses
    )


def test_advantages_by_hand() -> None:
    rewards, values = np.array([[1.0], [2.0]]), np.array([[0.5], [0.25]])
    after = np.array([4.0])
    last = 2.0 + 0.9 * 4.0 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * last
    assert np.allclose(_advantages(rewards, values, after, np.zeros((2, 1)), 0.9, 0.8), [[first], [last]])
    ended = np.array([[True], [False]])
    assert np.allclose(_advantages(rewards, values, after, ended, 0.9, 0.8), [[0.5], [last]])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"hidden": (3,)}, "hidden"),
        ({"imitation": -1}, "imitation"),
        ({"updates": -1}, "updates"),
        ({"lanes": 0}, "lanes"),
        ({"steps": 0}, "steps"),
        ({"candidates": 1}, "candidates"),
        ({"slots": 1}, "slots"),
        ({"horizon": 0.0}, "horizon"),
        ({"horizon": float("inf")}, "horizon"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"entropy": -1.0}, "entropy"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(KvpredictError, match=message):
        learner("agent", **params)


def test_an_unknown_credit_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="charged"):
        learner("agent", credit="charge")
