"""A linear model over compressed features: raw = bias + sum of weight * log1p(x).

Features are times, gaps and counts that span six decades; their logarithms are what a linear model can use. The
logarithm is a polynomial of the float's exponent and mantissa (error below 1e-7), the same on every machine.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import compress
from kvpredict.core.errors import ArtifactError
from kvpredict.core.jit import kernel, lean_kernel

__all__ = ["Linear", "check", "compress_rows", "score_batch"]


class Linear(NamedTuple):
    """Weights over ``width`` features."""

    weight: np.ndarray  # float64 [width]
    bias: np.ndarray  # float64 [1]


def check(linear: Linear, width: int) -> None:
    """Raise ``ArtifactError`` unless the arrays fit rows of ``width`` columns."""
    good = (
        linear.weight.shape == (width,)
        and linear.bias.shape == (1,)
        and all(a.dtype == np.float64 and bool(np.isfinite(a).all()) for a in linear)
    )
    if not good:
        raise ArtifactError(f"the linear model does not fit rows of {width} features")


@kernel
def compress_rows(x):
    """Return the compressed features, float64 ``[m, width]``, of rows; learners train on exactly these."""
    out = np.empty(x.shape, np.float64)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = compress(x[i, j])
    return out


@lean_kernel
def score_batch(linear, x, count, out):
    for i in range(count):
        total = linear.bias[0]
        for j in range(linear.weight.size):
            total += linear.weight[j] * compress(x[i, j])
        out[i] = total
