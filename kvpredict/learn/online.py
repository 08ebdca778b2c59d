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
from kvpredict.policies.guarded.learning import DEPTH, FAR_TREES, RATE
from kvpredict.scorers.boosting import empty_trees, fit_far, make_training
from kvpredict.simulate.simulate import check_trace, whole_capacity
from kvpredict.trace.trace import Trace

__all__ = ["decisions", "prior"]

MIN_ROWS = 200


@kernel
def _fit(training, count, trees):
    fit_far(training, count, trees, RATE)


def decisions(
    trace: Trace, capacity: int, policy: Guarded, *, unit: str = "objects", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Serve ``trace`` with ``policy`` and return what it would be fitted to at the end.

    Returns
    -------
    x : float32 array [m, width]
        Rows of objects that might have been evicted, at most ``policy.samples``.
    time : float32 array [m]
        For how long each was watched, in residence times.
    used : float32 array [m]
        1 where that time ended in a use, 0 where it ended in none.
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
        found = decisions(trace, capacity, policy, unit=unit, seed=seed)
        some = rng.permutation(len(found[0]))[:rows]
        parts.append([column[some] for column in found])
    x, time, used = (np.concatenate(columns) for columns in zip(*parts, strict=True)) if parts else [np.empty(0)] * 3
    if len(x) < MIN_ROWS:
        raise NothingToLearn(
            f"too few decisions to learn from: {len(x)}, at least {MIN_ROWS} are needed. Give longer traces, or other "
            "capacities"
        )
    order = rng.permutation(len(x))  # borders of bins are taken from evenly spaced rows
    training = make_training(len(x), x.shape[1], DEPTH)
    training.x[:], training.time[:], training.used[:] = x[order], time[order], used[order]
    trees = empty_trees(FAR_TREES, DEPTH)
    _fit(training, len(x), trees)
    # An artifact's score says who is to stay, the policy's model who is to go.
    stays = trees._replace(leaf=-trees.leaf, base=-trees.base)
    return Artifact(stays, Schema(), "identity", metadata or {})
