"""A pseudo-random generator that lives in a policy's state (xorshift32, Marsaglia 2003).

The state is one ``int64`` in an array, so copies, seeds and replays are exact, and every intermediate stays
below 2**63: compiled and interpreted runs draw the same numbers.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = ["below", "next_u32", "seed_random", "uniform"]

_MASK = 0xFFFFFFFF


def seed_random(seed: int) -> np.ndarray:
    """Return generator state, int64 ``[1]``, for any integer seed; neighbouring seeds give unrelated streams."""
    state = np.random.SeedSequence(seed & 0xFFFFFFFFFFFFFFFF).generate_state(1, np.uint32)
    return np.array([int(state[0]) | 1], dtype=np.int64)


@lean_kernel
def next_u32(rng):
    """Draw an integer in ``[1, 2**32)``."""
    x = rng[0]
    x ^= (x << 13) & _MASK
    x ^= x >> 17
    x ^= (x << 5) & _MASK
    rng[0] = x
    return x


@lean_kernel
def below(rng, n):
    """Draw an integer in ``[0, n)`` for ``0 < n < 2**31``."""
    return (next_u32(rng) * n) >> 32


@lean_kernel
def uniform(rng):
    """Draw a float in ``(0, 1)``."""
    return next_u32(rng) / 4294967296.0
