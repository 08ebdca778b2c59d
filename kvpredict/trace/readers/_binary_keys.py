"""Files that hold nothing but binary keys: how to tell 32-bit from 64-bit keys, and both from what is no trace.

Such files have no mark. A trace repeats keys, which noise does not. Read as 32-bit words, 64-bit hashes have upper
halves that never occur as lower halves, and both spread over the whole range; 32-bit keys occur at even and odd
places alike.
"""

from collections.abc import Iterator

import numpy as np

from kvpredict.trace.readers._format import Chunk, Head
from kvpredict.trace.readers._source import Source

__all__ = ["is_keys", "is_wide", "read_keys"]

NAMES = (".trace", ".bin", ".keys")


def is_keys(head: Head, dtype: str) -> bool:
    """Whether ``head`` may be keys of ``dtype``: some repeat."""
    if head.is_text or head.foreign or not head.name.endswith(NAMES):
        return False
    keys = head.records(np.dtype(dtype))
    return keys.size > 0 and np.unique(keys).size <= 0.99 * keys.size


def is_wide(head: Head) -> bool:
    """Whether ``head`` looks like 64-bit keys rather than 32-bit ones."""
    pairs = head.records(np.dtype([("upper", ">u4"), ("lower", ">u4")]))
    upper, lower = np.unique(pairs["upper"]), np.unique(pairs["lower"])
    if np.isin(upper, (0, 2**32 - 1)).all() and lower.size > 1:
        return True  # small numbers
    common = np.intersect1d(upper, lower).size
    spread = min(np.unique(upper >> 24).size, np.unique(lower >> 24).size)
    return common <= 0.01 * upper.size and spread > min(128, upper.size // 4)


def read_keys(source: Source, dtype: str) -> Iterator[Chunk]:
    """Yield the keys of a file."""
    for _, keys in source.records(np.dtype(dtype)):
        yield {"key": keys.astype(np.int64)}
