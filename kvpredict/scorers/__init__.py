"""Scorers: models as plain arrays, and the kernels that run them.

A scorer is a NamedTuple of arrays of one of three kinds (``linear``, ``trees``, ``mlp``) whose kernel
``score_batch(arrays, x, count, out)`` writes the raw scores of the first ``count`` rows of ``x``, float32
``[m, width]``, to ``out``, float64 ``[m]``. A higher score means: worth keeping. ``link`` turns it into a probability.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.errors import unknown_name
from kvpredict.scorers import linear, mlp, trees

__all__ = ["KINDS", "Kind", "kind_of", "predict_raw"]


class Kind(NamedTuple):
    """A kind of scorer: its NamedTuple of arrays, its kernel, and the check of arrays that come from a file."""

    name: str
    arrays: type
    score_batch: Callable[..., None]
    check: Callable[[Any, int], None]


KINDS = {
    "linear": Kind("linear", linear.Linear, linear.score_batch, linear.check),
    "trees": Kind("trees", trees.Trees, trees.score_batch, trees.check),
    "mlp": Kind("mlp", mlp.MLP, mlp.score_batch, mlp.check),
}


def kind_of(scorer: Any) -> Kind:
    """Return the kind that ``scorer`` is an instance of."""
    for kind in KINDS.values():
        if isinstance(scorer, kind.arrays):
            return kind
    raise unknown_name("kind of scorer", type(scorer).__name__, KINDS)


def predict_raw(scorer: Any, x: np.ndarray) -> np.ndarray:
    """Return the raw scores, float64 ``[m]``, of the rows of ``x``, float32 ``[m, width]``."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty(len(x), np.float64)
    kind_of(scorer).score_batch(scorer, x, len(x), out)
    return out
