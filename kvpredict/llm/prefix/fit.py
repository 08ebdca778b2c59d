"""fit_prefix: a first hazard model from a trace of requests.

What a block's future looks like does not depend on the cache, so the rows come from one replay in which ranks do not
matter, and serve every capacity; ``capacity`` is recorded as the one that the policy was meant for.
"""

import platform
from dataclasses import replace
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.prefix.model import examples, fit_model, lacking
from kvpredict.llm.prefix.policies import prefix_policy
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.result import Server
from kvpredict.llm.prefix.simulate import check_requests, simulate_prefix
from kvpredict.llm.requests import RequestTrace

__all__ = ["fit_prefix"]


def fit_prefix(
    trace: RequestTrace, capacity: int, *, server: Server | None = None, seed: int = 0, **params: Any
) -> Learned:
    """Train a learned prefix policy on past requests.

    Parameters
    ----------
    trace : RequestTrace
    capacity : int
        Blocks of the cache that it is meant for.
    server : Server, optional
        Durations of requests; default: ``Server()``.
    seed : int, default 0
    **params
        Parameters of ``Learned``.

    Raises
    ------
    KvpredictError
        When the trace holds too few requests, or hardly any block is reused.
    """
    check_requests(trace)
    policy = prefix_policy("learned", **{"rows": max(65536, 8 * len(trace)), **params})
    assert isinstance(policy, Learned)
    replayed = simulate_prefix(trace, replace(policy, every=0.0), capacity, server=server, seed=seed)
    turns, now = replayed.info["turns"], float(trace.times[-1]) if len(trace) else 0.0
    model = fit_model(turns, now, least=policy.first, rounds=policy.rounds, leaves=policy.leaves, seed=seed)
    _, y, _ = examples(turns, now, seed)
    if model is None:
        raise KvpredictError(
            f"{trace.name}: too little to learn from in {len(trace)} requests: {lacking(turns, y, policy.first)}. "
            "Give a longer trace"
        )
    metadata = {
        "trace": trace.name,
        "requests": len(trace),
        "blocks": len(trace.blocks),
        "unique": trace.unique,
        "block_size": trace.block_size,
        "capacity": int(capacity),
        "examples": len(y),
        "reuses": int(np.sum(y)),
        "python": platform.python_version(),
    }
    return replace(policy, model=replace(model, metadata=metadata))
