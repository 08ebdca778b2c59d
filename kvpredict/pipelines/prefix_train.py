"""prefix_train: learn which KV blocks to keep from the first part of a trace of LLM requests, and compare on the rest.

The learned policy replays the whole trace with the model of the first part and goes on learning, as it would in a
server; what is saved is the model of the first part.
"""

from pathlib import Path
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.prefix import fit_prefix
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
    """Run the pipeline; the learned policy is saved in ``folder / "policy"``."""
    trace = load_requests(config, start)
    cut = trace.position(config.pipeline.split)
    if not 0 < cut < len(trace):
        raise KvpredictError(
            f"pipeline.split={config.pipeline.split} leaves {cut} of {len(trace)} requests to train on; both parts "
            "need some"
        )
    trace, figures = predicted(config, trace, cut)
    device, host = tiers(config, trace)
    policies: dict[str, Any] = dict.fromkeys(chosen(config, learned=True))
    settings = {"every": config.pipeline.every, "growth": config.pipeline.growth}
    learned = fit_prefix(trace.head(cut), device + host, seed=config.seed, **settings)
    policies[LEARNED] = learned
    results = replayed(config, trace, policies, cut)
    learned.save(folder / "policy")
    assert learned.model is not None
    metadata = dict(learned.model.metadata)
    return {
        "trace": request_facts(trace),
        "capacity": {"count": device, "unit": "objects"},
        "split": {"at": cut, "trained_on": cut, "compared_on": len(trace) - cut},
        **compare(config, trace, results),
        **figures,
        "learned": {
            "metrics": {"reuses_a_example": metadata["reuses"] / max(1, metadata["examples"])},
            "calibration": {},
            "importance": dict(learned.model.importance),
            "folds": [],
            "settings": {k: v for k, v in learned.params().items() if k != "model"} | {"host_blocks": host},
            "curves": {},
        },
    }
