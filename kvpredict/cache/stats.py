"""Stats: what a cache has counted so far."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["Stats"]


class Stats(NamedTuple):
    """Counts since the cache was made; ``entries``, ``size`` and ``capacity`` are as of now.

    ``hits`` and ``misses`` are of ``get``, ``cache[key]`` and ``get_or_load``. ``inserts`` are new keys and
    ``updates`` new values of keys in the cache; ``rejections`` are values that were not taken in, because they are
    larger than the cache or the policy refused them. ``evictions`` made room for others. ``loads`` counts calls of a
    loader, ``load_failures`` those that raised. ``size`` and ``capacity`` are in units: entries, or what the weigher
    returns. ``policy`` is what the policy itself counts: how often ``guarded`` was trained, who led and for how long …
    """

    hits: int
    misses: int
    inserts: int
    updates: int
    evictions: int
    rejections: int
    deletions: int
    loads: int
    load_failures: int
    entries: int
    size: int
    capacity: int
    policy: Mapping[str, float] = MappingProxyType({})

    @property
    def hit_ratio(self) -> float:
        """Hits over look-ups; nan before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else float("nan")
