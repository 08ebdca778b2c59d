"""prefix_simulate: replay LLM requests through prefix policies, with or without a policy saved before."""

from pathlib import Path
from typing import Any

from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.prefix import (
    LEARNED,
    chosen,
    compare,
    load_requests,
    predicted,
    replayed,
    request_facts,
    tiers,
)

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; nothing is saved but the result."""
    trace = load_requests(config, start)
    cut = trace.position(config.pipeline.warmup)
    trace, figures = predicted(config, trace, cut)
    policies: dict[str, Any] = dict.fromkeys(chosen(config, learned=True))
    if config.pipeline.policy is not None:
        policies[LEARNED] = Learned.load((start / Path(config.pipeline.policy).expanduser()).resolve())
    results = replayed(config, trace, policies, cut)
    return {
        "trace": request_facts(trace),
        "capacity": {"count": tiers(config, trace)[0], "unit": "objects"},
        "split": {"at": cut, "trained_on": 0, "compared_on": len(trace) - cut},
        **compare(config, trace, results),
        **figures,
        "learned": None,
    }
