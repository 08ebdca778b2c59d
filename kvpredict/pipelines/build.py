"""From configuration to objects: the trace, the capacity and the policies of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.core.objective import check_objective
from kvpredict.core.policy import Policy
from kvpredict.learn import fit, learner
from kvpredict.pipelines.config import Capacity, Config, FileTrace
from kvpredict.policies import policy, policy_class, policy_names
from kvpredict.trace import Trace

__all__ = ["capacity_of", "chosen", "fit_learned", "load_trace", "make_policies", "objective_of", "oracles"]

LEARNED = "learned"


def load_trace(config: Config, start: Path) -> Trace:
    """Return the trace of a run; ``start`` is the folder that relative paths count from.

    The cells of a sweep that run in one process share the trace of the one before.
    """
    settings = config.trace
    if not isinstance(settings, FileTrace):
        return _generate(json.dumps(config.workload), config.seed)
    path = None if settings.path is None else (start / Path(settings.path).expanduser()).resolve()
    stamp = path.stat().st_mtime_ns if path is not None and path.exists() else 0
    return _read(json.dumps(asdict(settings)), path, stamp)


@lru_cache(maxsize=1)
def _read(settings: str, path: Path | None, stamp: int) -> Trace:
    from kvpredict.trace import read_trace
    from kvpredict.trace.sample import sample_path

    options = json.loads(settings)
    options.pop("source"), options.pop("path")
    columns = {role: name for role, name in options.pop("columns").items() if name is not None}
    # A table without a header is described by column numbers.
    columns = {role: int(name) if name.isdigit() else name for role, name in columns.items()}
    return read_trace(path or sample_path(), columns=columns or None, **options)


@lru_cache(maxsize=1)
def _generate(settings: str, seed: int) -> Trace:
    from kvpredict.trace.workloads import workload

    return workload(**json.loads(settings)).generate(seed)


def capacity_of(trace: Trace, capacity: Capacity) -> int:
    """Return the capacity in objects or bytes."""
    if not len(trace):
        raise KvpredictError(f"{trace.name} has no requests: nothing to do")
    return trace.capacity(capacity.fraction, capacity.unit) if capacity.count is None else capacity.count


def oracles(trace: Trace, unit: str) -> list[str]:
    """Return the policies that know the future and bound the others."""
    return ["belady", "beladysize"] if unit == "bytes" and trace.sizes is not None else ["belady"]


def chosen(config: Config, trace: Trace, *, learned: bool) -> list[str]:
    """Return the names of the policies to run: the one of ``policy=…`` or the list of the pipeline, and the bounds.

    LRU and the oracles always run, since the share of the gap between them is a figure of every row.
    """
    bounds = ["lru", *oracles(trace, config.capacity.unit)]
    if config.policy is not None:
        names = [config.policy["name"]]
    elif "all" in config.pipeline.policies:
        names = [n for n in policy_names() if n != LEARNED and not policy_class(n).traits.oracle]
        names += [LEARNED] if learned else []
    else:
        names = list(config.pipeline.policies)
        for name in names:
            policy_class(name)  # raises for an unknown one, with the nearest right name
    if LEARNED in names and not learned:
        raise KvpredictError("pipeline=simulate does not train; use pipeline=train for policy 'learned'")
    return list(dict.fromkeys([*names, *bounds]))


def objective_of(config: Config, trace: Trace) -> str:
    """Return what a run is to lower, which is what its policies are compared by."""
    chosen = config.policy or {}
    own = chosen.get("name") != LEARNED and "objective" in chosen
    objective: str = chosen["objective"] if own else _learned_params(config).get("objective", "objects")
    check_objective(objective)
    return "objects" if objective == "cost" and "cost" not in trace.columns else objective  # each miss costs one


def make_policies(config: Config, names: Sequence[str], trace: Trace) -> dict[str, Policy]:
    """Make the heuristics and oracles; parameters set with ``policy.…`` go to the policy that they belong to.

    One that can be told what a miss counts for is told the run's objective.
    """
    set_by_hand, objective = config.policy or {"name": None}, objective_of(config, trace)

    def made(name: str) -> Policy:
        if name == set_by_hand["name"]:
            return policy(**set_by_hand)
        has = "objective" in policy_class(name).__dataclass_fields__
        return policy(name, objective=objective) if has else policy(name)

    return {name: made(name) for name in names}


def fit_learned(config: Config, past: Trace, capacity: int) -> Any:
    """Train on ``past`` with the run's learner and the parameters of the learned policy."""
    return fit(
        past,
        capacity,
        learner=learner(**config.learner),
        unit=config.capacity.unit,
        seed=config.seed,
        **asdict(config.fit),
        **_learned_params(config),
    )


def _learned_params(config: Config) -> dict[str, Any]:
    """Return what ``learned.…`` sets to other than the default, and over that what ``policy.…`` does.

    ``policy.…`` speaks of the learned policy with policy=learned alone. Defaults are left to the policy that ``fit``
    returns, which may be another one.
    """
    set_by_hand = [config.learned or {}]
    if config.policy is not None and config.policy["name"] == LEARNED:
        set_by_hand.append(config.policy)
    defaults = policy_class(LEARNED).__dataclass_fields__
    passed = ("mode", "objective", "candidates", "batch", "base", "history")
    return {k: v for given in set_by_hand for k, v in given.items() if k in passed and v != defaults[k].default}
