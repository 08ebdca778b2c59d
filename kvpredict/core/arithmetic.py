"""Exponentials and logarithms by arithmetic alone, without a call into the C library.

Library functions may differ in the last bit between machines and between compiled and interpreted code; sums and
products of doubles do not. The relative error of ``half_lives`` is below 1e-8, the error of ``compress`` below 1e-7,
under the precision of the float32 in which features are stored.
"""

from kvpredict.core.jit import lean_kernel

__all__ = ["compress", "exponential", "half_lives", "logarithm"]


@lean_kernel
def half_lives(x):
    """Return 2 ** -x for ``x >= 0``; 0.0 from 63 on.

    >>> half_lives(0.0), round(half_lives(1.5), 7)
    (1.0, 0.3535534)
    """
    x = min(x, 63.0)
    whole = int(x + 0.5)
    z = (x - whole) * -0.6931471805599453
    # exp(z) on [-ln(2) / 2, ln(2) / 2]: Taylor to the seventh power.
    tail = 1.0 + z * (1.0 / 6.0) * (1.0 + z * (1.0 / 7.0))
    power = 1.0 + z * (1.0 + z * 0.5 * (1.0 + z * (1.0 / 3.0) * (1.0 + z * 0.25 * (1.0 + z * 0.2 * tail))))
    # 2 ** -whole without a table and no branch before this one, so that a loop over many is done several at once.
    half = whole >> 1
    scale = float(1 << (32 - half)) * float(1 << (32 + half - whole)) * 5.421010862427522e-20  # 2 ** -64
    return scale * power if x < 63.0 else 0.0


@lean_kernel
def exponential(x):
    """Return e ** x; not above e ** 43, and 0.0 from -43 down."""
    power = half_lives(abs(x) * 1.4426950408889634)
    return power if x < 0.0 else 1.0 / max(power, 1e-19)


@lean_kernel
def logarithm(x):
    """Return the natural logarithm of ``x > 0``.

    >>> round(logarithm(0.25) + logarithm(4.0), 7)
    0.0
    """
    return compress(x - 1.0) if x >= 1.0 else -compress(1.0 / x - 1.0)


@lean_kernel
def compress(x):
    """Return sign(x) * log(1 + |x|), computed by arithmetic alone."""
    y = 1.0 + abs(float(x))
    exponent = 0.0
    while y >= 65536.0:
        y *= 1.0 / 65536.0
        exponent += 16.0
    while y >= 1.4142135623730951:
        y *= 0.5
        exponent += 1.0
    # log(y) = 2 artanh(z), z = (y - 1) / (y + 1), |z| < 0.18
    z = (y - 1.0) / (y + 1.0)
    w = z * z
    value = 2.0 * z * (1.0 + w * (1.0 / 3.0 + w * (0.2 + w * (1.0 / 7.0 + w * (1.0 / 9.0)))))
    value += exponent * 0.6931471805599453
    return value if x >= 0.0 else -value
