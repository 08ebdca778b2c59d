"""Online, taught beforehand: the model that a guarded policy ends up with on past traces, as the prior of another.

``guarded`` learns inside the cache, from samples of its own decisions. Here it serves traces of the past, and what it
would be fitted to at the end of each is pooled: a prior is one more fit of the same trees to the same rows. A cache
that begins with it decides by a model from its first eviction, under the same guard, until it is fitted to its own
decisions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvpredict.artifact import Artifact
from kvpredict.core.jit import kernel
from kvpredict.features.schema import Schema
from kvpredict.learn.dataset import serve
from kvpredict.learn.learner import NothingToLearn
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.guarded.learning import DEPTH, RATE, TREES
from kvpredict.scorers.boosting import empty_trees, fit_trees, make_training
from kvpredict.simulate.simulate import check_trace, whole_capacity
from kvpredict.trace.trace import Trace

__all__ = ["decisions", "prior"]

MIN_ROWS = 200


@kernel
def _fit(training, count, trees):
    fit_trees(training, count, trees, RATE)


def decisions(
    trace: Trace, capacity: int, policy: Guarded, *, unit: str = "objects", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Serve ``trace`` with ``policy`` and return what it would be fitted to at the end.

    Returns
    -------
    x : float32 array [m, width]
        Rows of objects that might have been evicted, at most ``policy.samples``.
    y : float32 array [m]
        Log of the time until the next use, in residence times.
    """
    check_trace(trace)
    capacity = whole_capacity(capacity, unit)
    return policy.samples_of(serve(trace, policy, capacity, unit=unit, seed=seed))


def prior(
    traces: Sequence[tuple[Trace, int]],
    policy: Guarded | None = None,
    *,
    unit: str = "objects",
    rows: int = 2000,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
) -> Artifact:
    """Return a model for ``Guarded(prior=…)``.

    Parameters
    ----------
    traces : sequence of (Trace, int)
        Traces and the capacities of the caches that serve them.
    policy : Guarded, optional
        Who serves. Default: one with default settings.
    unit : {"objects", "bytes"}, default "objects"
    rows : int, default 2000
        The most decisions taken of each trace and capacity.
    seed : int, default 0
    metadata : dict, optional
        What the artifact is to say of its origin.

    Raises
    ------
    NothingToLearn
        When the traces hold too few decisions to learn from.
    """
    policy = Guarded() if policy is None else policy
    rng = np.random.default_rng(seed)
    parts = []
    for trace, capacity in traces:
        x, y = decisions(trace, capacity, policy, unit=unit, seed=seed)
        some = rng.permutation(len(y))[:rows]
        parts.append((x[some], y[some]))
    x, y = (np.concatenate(columns) for columns in zip(*parts, strict=True)) if parts else (np.empty(0), np.empty(0))
    if len(y) < MIN_ROWS:
        raise NothingToLearn(
            f"too few decisions to learn from: {len(y)}, at least {MIN_ROWS} are needed. Give longer traces, or other "
            "capacities"
        )
    order = rng.permutation(len(y))  # borders of bins are taken from evenly spaced rows
    training = make_training(len(y), x.shape[1], DEPTH)
    training.x[:], training.y[:] = x[order], y[order]
    trees = empty_trees(TREES, DEPTH)
    _fit(training, len(y), trees)
    # An artifact's score says who is to stay, the policy's model who is to go.
    stays = trees._replace(leaf=-trees.leaf, base=-trees.base)
    return Artifact(stays, Schema(), "identity", metadata or {})
