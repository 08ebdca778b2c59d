"""Exponential decay by table and polynomial: 2 ** -x without a call into the C library.

Library ``exp2`` may differ in the last bit between machines and between compiled and interpreted code; sums and
products of doubles do not. The relative error is below 1e-8, far under the float32 in which counts are stored.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = ["half_lives"]

_POWERS = 0.5 ** np.arange(64)  # 2 ** -k


@lean_kernel
def half_lives(x):
    """Return 2 ** -x for ``x >= 0``; 0.0 from 63 on.

    >>> half_lives(0.0), round(half_lives(1.5), 7)
    (1.0, 0.3535534)
    """
    if x >= 63.0:
        return 0.0
    whole = int(x + 0.5)
    z = (x - whole) * -0.6931471805599453
    # exp(z) on [-ln(2) / 2, ln(2) / 2]: Taylor to the seventh power.
    tail = 1.0 + z * (1.0 / 6.0) * (1.0 + z * (1.0 / 7.0))
    power = 1.0 + z * (1.0 + z * 0.5 * (1.0 + z * (1.0 / 3.0) * (1.0 + z * 0.25 * (1.0 + z * 0.2 * tail))))
    return _POWERS[whole] * power
