"""What the report draws: misses over time and over capacities, of LRU, the best heuristics, the learned policy and
the best oracle.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvpredict.core.policy import Policy
from kvpredict.pipelines.build import LEARNED
from kvpredict.pipelines.compare import Measured, Replay, best_heuristics, best_oracle, collect
from kvpredict.pipelines.config import Config

__all__ = ["figures"]


def figures(
    config: Config,
    replay: Replay,
    policies: Mapping[str, Policy],
    measured: Mapping[str, Measured],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return ``series`` and ``curves`` of a comparison, ``rows`` being its table at one capacity."""
    shown = ["lru", *best_heuristics(rows, config.report.best), LEARNED, best_oracle(measured)]
    if config.policy is not None:
        shown.insert(1, config.policy["name"])
    shown = [name for name in dict.fromkeys(shown) if name in policies]
    drawn: dict[str, Any] = {}
    if config.report.html and config.report.fractions:
        heuristics = {name: policies[name] for name in shown if name != LEARNED}
        pending = replay.begin(replay.curve, heuristics, config.report.fractions)
        if LEARNED in shown:
            drawn[LEARNED] = replay.curve(policies[LEARNED], config.report.fractions)
        drawn |= collect(pending, len(heuristics), "drawing curves")
    return {
        "series": [_series(name, measured[name]) for name in shown],
        "curves": [{"policy": name, **drawn[name]} for name in shown if name in drawn],
    }


def _series(name: str, measured: Measured) -> dict[str, Any]:
    s = measured.series
    return {
        "policy": name,
        "start": s.start.tolist(),
        "object_miss_ratio": s.object_miss_ratio.tolist(),
        "byte_miss_ratio": s.byte_miss_ratio.tolist(),
    }
