"""A multilayer perceptron with two hidden layers of rectified units, over compressed and standardised features."""

from typing import NamedTuple

import numpy as np

from kvpredict.core.arithmetic import compress
from kvpredict.core.errors import ArtifactError
from kvpredict.core.jit import kernel

__all__ = ["MLP", "check", "score_batch"]


class MLP(NamedTuple):
    """Weights of ``width`` -> ``a`` -> ``b`` -> 1 units."""

    mean: np.ndarray  # float32 [width], of the compressed features
    scale: np.ndarray  # float32 [width], 1 / standard deviation
    w1: np.ndarray  # float32 [a, width]
    b1: np.ndarray  # float32 [a]
    w2: np.ndarray  # float32 [b, a]
    b2: np.ndarray  # float32 [b]
    w3: np.ndarray  # float32 [b]
    b3: np.ndarray  # float32 [1]


def check(mlp: MLP, width: int) -> None:
    """Raise ``ArtifactError`` unless the arrays fit each other and rows of ``width`` columns."""
    a, b = mlp.b1.size, mlp.b2.size
    shapes = ((width,), (width,), (a, width), (a,), (b, a), (b,), (b,), (1,))
    if any(array.shape != shape or array.dtype != np.float32 for array, shape in zip(mlp, shapes, strict=True)):
        raise ArtifactError(f"the layers of the neural net do not fit each other or rows of {width} features")
    if not all(np.isfinite(array).all() for array in mlp):
        raise ArtifactError("the neural net has weights that are not finite")


@kernel
def score_batch(mlp, x, count, out):
    width = mlp.mean.size
    inputs = np.empty(width, np.float64)
    first = np.empty(mlp.b1.size, np.float64)
    for i in range(count):
        for j in range(width):
            inputs[j] = (compress(x[i, j]) - mlp.mean[j]) * mlp.scale[j]
        for u in range(first.size):
            total = float(mlp.b1[u])
            for j in range(width):
                total += mlp.w1[u, j] * inputs[j]
            first[u] = max(total, 0.0)
        raw = float(mlp.b3[0])
        for u in range(mlp.b2.size):
            total = float(mlp.b2[u])
            for j in range(first.size):
                total += mlp.w2[u, j] * first[j]
            raw += mlp.w3[u] * max(total, 0.0)
        out[i] = raw
