"""simulate: replay a trace through policies at one or several capacities, without learning."""

from pathlib import Path
from typing import Any

from kvpredict.pipelines.build import capacity_of, chosen, load_trace, make_policies, objective_of
from kvpredict.pipelines.compare import MANY, Replay, collect, compare
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.facts import trace_facts
from kvpredict.pipelines.figures import figures

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; nothing is saved but the result."""
    trace = load_trace(config, start)
    unit = config.capacity.unit
    warmup = trace.position(config.pipeline.warmup)
    policies = make_policies(config, chosen(config, trace, learned=False), trace)
    objective = objective_of(config, trace)
    replay = Replay(trace, unit, warmup, config.seed, config.report.windows, len(policies) >= MANY)
    capacities = [trace.capacity(f, unit) for f in config.pipeline.fractions] or [capacity_of(trace, config.capacity)]

    rows: list[dict[str, Any]] = []
    for capacity in dict.fromkeys(capacities):
        pending = replay.begin(replay.measure, policies, capacity)
        measured = collect(pending, len(policies), "comparing policies")
        table = compare(measured, objective)
        rows += table

    return {
        "trace": trace_facts(trace),
        "capacity": {"count": capacity, "unit": unit},
        "split": {"at": warmup, "trained_on": 0, "compared_on": len(trace) - warmup},
        "objective": objective,
        "policies": rows,
        "learned": None,
        # Of the last capacity; the table has them all.
        **figures(config, replay, policies, measured, table),
    }
