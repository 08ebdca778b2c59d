"""The experiment's two commands: what they compare, and with what."""

import csv
from typing import Any

import numpy as np
import pytest

from experiments.agent import controller, run
from experiments.common import DEVELOPMENT, VALIDATION
from kvpredict.learn.fit import fit
from kvpredict.policies import policy_class
from kvpredict.trace import Trace


def test_the_best_heuristic_is_no_trained_policy_and_no_oracle() -> None:
    best = run.best_heuristic()
    assert {(name, fraction) for name in (*DEVELOPMENT, *VALIDATION) for fraction in run.FRACTIONS} <= set(best)
    with open(run.ALL / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["trace"], row["fraction"]) == ("web07", "0.01")]
    misses = {row["policy"]: int(row["misses"]) for row in rows if row["unit"] == "objects"}
    heuristics = [name for name in misses if name not in run.TRAINED and not policy_class(name).traits.oracle]
    assert best["web07", 0.01] == min(misses[name] for name in heuristics)


def test_the_agent_is_compared_with_a_model_that_lightgbm_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def seen(*given: Any, **params: Any) -> Any:
        made.append(fit(*given, **params))
        return made[-1]

    monkeypatch.setattr(run, "fit", seen)
    trace = Trace(np.random.default_rng(0).zipf(1.2, 20_000) % 2000)
    found = run.measure(trace, 40, 0, imitation=1, updates=1, lanes=2, steps=8)
    assert list(found) == ["lightgbm", *run.NETS]
    assert made[0].name == "learned"
    assert made[0].report.settings["learner"] == "lightgbm"


def test_the_controller_is_measured_on_the_same_traces() -> None:
    assert controller.DEVELOPMENT == DEVELOPMENT
    assert controller.VALIDATION == VALIDATION
