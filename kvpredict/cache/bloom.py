"""BloomFilter: which keys may exist, in about ten bits a key, so that asking for others costs the source nothing.

A key that was added is always found; one that was not is taken for known with the probability that the filter was made
for, as long as no more keys are added than it expects. Keys cannot be taken out: build a new filter for that.

Bloom, "Space/time trade-offs in hash coding with allowable errors", CACM 1970; the bits of a key follow from one 64-bit
hash by double hashing, Kirsch and Mitzenmacher, "Less hashing, same performance", ESA 2006.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from threading import Lock
from typing import Any

from kvpredict.cache.arguments import hashed_key
from kvpredict.cache.keys import stable_hash
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError

__all__ = ["BloomFilter"]

MASK = 2**64 - 1


class BloomFilter:
    """A set of keys that may err by holding too much.

    Parameters
    ----------
    expected : int
        Keys that will be added.
    false_positives : float, default 0.01
        Share, in (0, 1), of other keys that are taken for known once it is full.
    key_hash : callable, default ``stable_hash``
        ``key_hash(key) -> int`` of 64 bits.

    >>> known = BloomFilter(1000)
    >>> known.update(["a", "b"])
    >>> "a" in known, "z" in known
    (True, False)
    """

    def __init__(
        self, expected: int, false_positives: float = 0.01, *, key_hash: Callable[[Any], int] = stable_hash
    ) -> None:
        self.expected = whole_number("expected", expected)
        if not isinstance(false_positives, float) or not 0.0 < false_positives < 1.0:
            raise KvpredictError(f"false_positives is a share, above 0 and below 1, got {false_positives!r}")
        if not callable(key_hash):
            raise KvpredictError(f"key_hash must be callable, got {type(key_hash).__name__}")
        self._key_hash = key_hash
        self.bits = max(8, math.ceil(-expected * math.log(false_positives) / math.log(2) ** 2))
        self.probes = max(1, round(self.bits / expected * math.log(2)))
        self._array = bytearray((self.bits + 7) // 8)
        self._lock = Lock()  # two threads that set bits of one byte must not undo each other

    def add(self, key: Hashable) -> None:
        """Add one key."""
        places = list(self._places(key))
        with self._lock:
            for place in places:
                self._array[place >> 3] |= 1 << (place & 7)

    def update(self, keys: Iterable[Hashable]) -> None:
        """Add many keys."""
        for key in keys:
            self.add(key)

    def __contains__(self, key: Hashable) -> bool:
        array = self._array
        return all(array[place >> 3] >> (place & 7) & 1 for place in self._places(key))

    def _places(self, key: Hashable) -> Iterator[int]:
        number = _mixed(hashed_key(key, self._key_hash) & MASK)
        step = _mixed(number) | 1
        for _ in range(self.probes):
            yield number % self.bits
            number = (number + step) & MASK


def _mixed(number: int) -> int:
    """Spread a number over 64 bits: integers are their own hashes, and neighbours must not share bits (splitmix64)."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)
