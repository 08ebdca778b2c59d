"""train: learn from the first part of a trace, and compare every policy on the rest.

All policies replay the whole trace and are counted from the split on, so caches are warm and the learned policy has
seen nothing of what it is judged by. With ``policy=`` a heuristic only that one runs, beside LRU and the oracle.
"""

from pathlib import Path
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.pipelines.build import LEARNED, capacity_of, chosen, fit_learned, load_trace, make_policies, objective_of
from kvpredict.pipelines.compare import FIT, MANY, Replay, collect, compare
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.facts import trace_facts
from kvpredict.pipelines.figures import draws, figures
from kvpredict.trace import Trace

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; the learned policy is saved in ``folder / "policy"``."""
    trace = load_trace(config, start)
    capacity = capacity_of(trace, config.capacity)
    cut = split(trace, config)
    objective = objective_of(config, trace)
    names = chosen(config, trace, learned=True)
    replay = Replay(trace, config.capacity.unit, cut, config.seed, config.report.windows, len(names) >= MANY)

    policies = make_policies(config, [name for name in names if name != LEARNED], trace)
    pending = replay.begin(replay.measure, policies, capacity, meanwhile=FIT if LEARNED in names else 0)
    learned = fit_learned(config, trace.head(cut), capacity) if LEARNED in names else None
    measured = {LEARNED: replay.measure(learned, capacity)} if learned else {}
    curve = {LEARNED: replay.curve(learned, config.report.fractions)} if learned and draws(config) else {}
    measured |= collect(pending, len(policies), "comparing policies")

    result: dict[str, Any] = {
        "trace": trace_facts(trace),
        "capacity": {"count": capacity, "unit": config.capacity.unit},
        "split": {"at": cut, "trained_on": cut if learned else 0, "compared_on": len(trace) - cut},
        "objective": objective,
        "policies": compare(measured, objective),
        "learned": None,
    }
    if learned:
        policies |= {LEARNED: learned}
        learned.save(folder / "policy")
        result["learned"] = {
            "metrics": learned.report.metrics,
            "calibration": learned.report.calibration,
            "importance": learned.report.importance,
            "folds": learned.report.folds,
            "settings": learned.report.settings,
            "curves": learned.report.curves,
        }
    return result | figures(config, replay, policies, measured, result["policies"], curve)


def split(trace: Trace, config: Config) -> int:
    """Return the index of the first request of the later part."""
    at = config.pipeline.split
    cut = trace.position(at, by=config.pipeline.split_by)
    if not 0 < cut < len(trace):
        raise KvpredictError(
            f"pipeline.split={at} leaves {cut} of the {len(trace)} requests of {trace.name} to train on and "
            f"{len(trace) - cut} to compare on; both need some"
        )
    return cut
