"""The controller: weights that guarded obeys, and evolution that finds them."""

import numpy as np
import pytest

from kvpredict import KvpredictError, Trace, policy
from kvpredict.learn.controller import evolve_controller, rule_weights
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.guarded.state import LAMBDA, SIGNALS, SWITCHES, State
from tests.policies.test_guarded import run
from tests.strategies import zipf_mix

SMALL = {"leaders": "lru+lfu", "samples": 1000}


def steered(weights: np.ndarray) -> tuple[np.ndarray, State]:
    return run(Trace.from_keys(zipf_mix(6_000, 800, seed=2)), 100, controller=tuple(weights), **SMALL)


def constant(up: float, favour: float) -> np.ndarray:
    """Return weights whose answers depend on nothing."""
    weights = np.zeros((2, SIGNALS))
    weights[:, -1] = up, favour
    return weights.ravel()


def test_lambda_obeys_the_first_answer() -> None:
    assert steered(constant(1.0, 0.0))[1].core.level[LAMBDA] == Guarded().most
    assert steered(constant(-1.0, 0.0))[1].core.level[LAMBDA] == 0.0


def test_the_leader_is_favoured_by_the_second_answer() -> None:
    steady, fickle = steered(constant(1.0, 10.0))[1], steered(constant(1.0, -9.0))[1]
    assert steady.core.word[SWITCHES] < fickle.core.word[SWITCHES]


def test_it_starts_near_the_rule() -> None:
    traces = [Trace.from_keys(zipf_mix(6_000, 800, seed=s)) for s in range(4)]
    steered, ruled = (
        sum(int(run(trace, 100, controller=weights, **SMALL)[0].sum()) for trace in traces)
        for weights in (tuple(rule_weights()), None)
    )
    assert steered == pytest.approx(ruled, rel=0.02)


def test_evolution_is_reproducible_and_keeps_the_best() -> None:
    cells = [(Trace.from_keys(zipf_mix(3_000, 400, seed=s)), 60) for s in (3, 4)]
    told: list[float] = []
    found = [
        evolve_controller(cells, generations=3, pairs=2, workers=w, progress=lambda _, f: told.append(f), **SMALL)
        for w in (1, 2)
    ]
    assert np.array_equal(found[0][0], found[1][0])
    weights, curves = found[0]
    assert curves["misses"]["step"] == [0, 1, 2, 3]
    assert curves["misses"]["value"] == told[:4]
    at = int(np.argmin(told[:4]))
    assert np.array_equal(weights, rule_weights()) == (at == 0)


@pytest.mark.parametrize("bad", [{"generations": 0}, {"pairs": 0}, {"sigma": 0.0}, {"rate": -1.0}, {"workers": 0}])
def test_bad_arguments_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(KvpredictError, match="positive"):
        evolve_controller([(Trace.from_keys([1, 2, 3]), 1)], **bad)  # type: ignore[arg-type]
    with pytest.raises(KvpredictError, match="empty"):
        evolve_controller([])


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(KvpredictError, match="22 finite weights, got 3"):
        policy("guarded", controller=(1.0, 2.0, 3.0))
    with pytest.raises(KvpredictError, match="each of it a number"):
        policy("guarded", controller=[float("nan")] * 22)
