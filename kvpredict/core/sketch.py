"""How often was a key seen lately? A count-min sketch with ageing, behind a doorkeeper.

Four counters, capped at 15, stand for a key; the smallest is the estimate, which is never below the true count of the
period. All four lie in one block of 64 bytes, a cache line. A key's first use in a period only sets three bits of a
Bloom filter, the doorkeeper, so that what is used once takes no counter. After ``period`` additions every counter is
halved and the doorkeeper emptied: old popularity fades.

Cormode and Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch and its Applications", J. Algorithms
2005; Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM TOS 2017, section 3.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.table import hash_key

__all__ = ["ADDITIONS", "PERIOD", "Sketch", "make_sketch", "sketch_add", "sketch_count"]

MOST = 15  # a counter's largest value
ADDITIONS, PERIOD = 0, 1  # places in Sketch.n


class Sketch(NamedTuple):
    """State of a sketch."""

    counters: np.ndarray  # uint8 [64 * blocks], four rows of 16 in each block
    door: np.ndarray  # uint32 [words], 32 bits of the doorkeeper each; no words, no doorkeeper
    n: np.ndarray  # int64 [2]: additions since they were last halved; additions after which everything is halved


def make_sketch(n: int, period: int, doorkeeper: bool = True) -> Sketch:
    """Return an empty sketch for about ``n`` keys of interest, with 16 counters for each."""
    blocks = 1 << max(0, int(n - 1).bit_length() - 2)
    words = 1 << max(0, int(period - 1).bit_length() - 2)  # 8 to 16 bits for each addition of a period
    return Sketch(
        counters=np.zeros(64 * blocks, np.uint8),
        door=np.zeros(words if doorkeeper else 0, np.uint32),
        n=np.array([0, period], np.int64),
    )


@lean_kernel
def _mix(h):
    return (h * 0x2C1B3C6D) & 0xFFFFFFFF


@lean_kernel
def _bits(h):
    """Return the doorkeeper's bits for a hash, three of 32."""
    return (1 << (h >> 27)) | (1 << ((h >> 22) & 31)) | (1 << ((h >> 17) & 31))


@lean_kernel
def sketch_count(k, key):
    """Return the estimate of ``key``: 0 to 15, plus one for the doorkeeper."""
    h = hash_key(key)
    g = _mix(h)
    base = 64 * (h & ((k.counters.size >> 6) - 1))
    least = np.int64(MOST)
    for row in range(4):
        least = min(least, np.int64(k.counters[base + 16 * row + ((g >> (16 + 4 * row)) & 15)]))
    if k.door.size > 0:
        bits = _bits(h)
        if np.int64(k.door[g & (k.door.size - 1)]) & bits == bits:
            least += 1
    return least


@lean_kernel
def sketch_add(k, key):
    """Count one use of ``key``, and age everything when a period is over."""
    h = hash_key(key)
    g = _mix(h)
    k.n[ADDITIONS] += 1
    first = False
    if k.door.size > 0:
        word = g & (k.door.size - 1)
        bits = _bits(h)
        seen = np.int64(k.door[word])
        first = seen & bits != bits
        if first:
            k.door[word] = seen | bits
    if not first:
        base = 64 * (h & ((k.counters.size >> 6) - 1))
        for row in range(4):
            i = base + 16 * row + ((g >> (16 + 4 * row)) & 15)
            if k.counters[i] < MOST:
                k.counters[i] += 1
    if k.n[ADDITIONS] >= k.n[PERIOD]:
        k.n[ADDITIONS] >>= 1
        for i in range(k.counters.size):
            k.counters[i] >>= 1
        for i in range(k.door.size):
            k.door[i] = 0
