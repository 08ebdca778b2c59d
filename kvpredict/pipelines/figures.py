"""What the report draws: misses over time and over capacities, of LRU, the best heuristics, the learned policy and
the best oracle.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvpredict.core.policy import Policy
from kvpredict.pipelines.build import objective_of
from kvpredict.pipelines.compare import LEARNING, Measured, Replay, best_heuristics, best_oracle, collect
from kvpredict.pipelines.config import Config

__all__ = ["draws", "figures"]


def figures(
    config: Config,
    replay: Replay,
    policies: Mapping[str, Policy],
    measured: Mapping[str, Measured],
    rows: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return ``series``, ``curves`` and ``accounts``, what policies say of their own work, of a comparison.

    ``rows`` is its table at one capacity, ``drawn`` the curves that are there already.
    """
    shown = [
        "lru",
        *best_heuristics(rows, config.report.best),
        *LEARNING,
        best_oracle(measured, objective_of(config, replay.trace)),
    ]
    if config.policy is not None:
        shown.insert(1, config.policy["name"])
    shown = [name for name in dict.fromkeys(shown) if name in policies]
    curves = dict(drawn or {})
    if draws(config):
        missing = {name: policies[name] for name in shown if name not in curves}
        curves |= collect(replay.begin(replay.curve, missing, config.report.fractions), len(missing), "drawing curves")
    return {
        "series": [_series(name, measured[name]) for name in shown],
        "curves": [{"policy": name, **curves[name]} for name in shown if name in curves],
        "accounts": [{"policy": name, **m.result.account} for name, m in measured.items() if m.result.account],
    }


def draws(config: Config) -> bool:
    """Tell whether the run draws miss-ratio curves."""
    return config.report.html and bool(config.report.fractions)


def _series(name: str, measured: Measured) -> dict[str, Any]:
    s = measured.series
    return {
        "policy": name,
        "start": s.start.tolist(),
        "object_miss_ratio": s.object_miss_ratio.tolist(),
        "byte_miss_ratio": s.byte_miss_ratio.tolist(),
    }
