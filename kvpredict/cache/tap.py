"""Tap: the accesses that a cache's policy sees, of a sample of the keys, the latest in a ring.

It is filled by the same compiled call that tells the policy of them, so that watching a live cache costs a few
nanoseconds an access. The sample is by key, as the recorder's, so that reuse within it is what it was.

Row 0 holds the number of accesses noted so far and the threshold under which a key's hash must lie, of 2**32; the other
rows are the ring: key and size.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.table import hash_key

__all__ = ["make_tap", "note", "untapped", "written"]


def make_tap(sample: float, window: int) -> np.ndarray:
    """Return an empty tap for a share ``sample`` of the keys and ``window`` accesses: int64 ``[window + 1, 2]``."""
    tap = np.zeros((window + 1, 2), np.int64)
    tap[0, 1] = round(sample * 2**32)
    return tap


def untapped() -> np.ndarray:
    """Return a tap that notes nothing."""
    return np.zeros((2, 2), np.int64)


@lean_kernel
def note(tap, key, size):
    """Note an access if its key is in the sample."""
    if tap[0, 1] > 0 and hash_key(key) < tap[0, 1]:
        row = 1 + tap[0, 0] % (tap.shape[0] - 1)
        tap[row, 0] = key
        tap[row, 1] = size
        tap[0, 0] += 1


def written(tap: np.ndarray) -> np.ndarray:
    """Return a copy of what is in the ring, oldest first: int64 ``[n, 2]``."""
    count, ring = int(tap[0, 0]), tap[1:]
    if count < len(ring):
        return ring[:count].copy()
    start = count % len(ring)
    return np.concatenate([ring[start:], ring[:start]])
