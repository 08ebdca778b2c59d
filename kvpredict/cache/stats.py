"""Stats: what a cache has counted so far, and what of it in a recent window.

Every few seconds the counts are put aside with the time; a window is the difference between now and one of these marks.
"""

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from kvpredict.core.errors import KvpredictError

__all__ = ["Marks", "Stats"]

EVERY = 5.0  # seconds between marks
KEPT = 3600.0  # seconds that a mark is kept


class Stats(NamedTuple):
    """Counts since the cache was made; ``entries``, ``size`` and ``capacity`` are as of now.

    ``hits`` and ``misses`` are of ``get``, ``cache[key]`` and ``get_or_load``. ``inserts`` are new keys and
    ``updates`` new values of keys in the cache; ``rejections`` are values that were not taken in, because they are
    larger than the cache or the policy refused them; where that is an update, it counts as both, and the old value is
    gone. ``evictions`` made room for others; ``expirations`` are entries taken out because their time was over.
    ``loads`` counts calls of a loader, ``load_failures`` those that raised,
    ``load_seconds`` their time in all; ``load_refusals`` are loads that were not begun, for want of a permit.
    ``refreshes`` are loads in the background that came back with a value. ``negative_hits`` are those of ``hits`` that
    found a failure kept by ``Loads(negative_ttl=…)``; ``stale_served`` are values handed out past their time because a
    load failed or took too long. ``policy`` is what the policy itself counts: how often ``guarded`` was trained, who
    led and for how long, who does now (``leader``) … ``size`` and ``capacity`` are in units: entries, or what the
    weigher returns.
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
    expirations: int = 0
    negative_hits: int = 0
    stale_served: int = 0
    refreshes: int = 0
    load_refusals: int = 0
    load_seconds: float = 0.0
    policy: Mapping[str, float | str] = MappingProxyType({})
    marks: "tuple[tuple[float, Stats], ...]" = ()  # earlier counts, each with its age in seconds

    @property
    def hit_ratio(self) -> float:
        """Hits over look-ups; nan before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else float("nan")

    def last(self, seconds: float) -> "Stats":
        """Return what was counted in about the last ``seconds``, up to an hour.

        The window begins at the latest mark that is at least as old, or where there is none with the cache. Marks are
        made when the policy is told of accesses and at a call of ``stats()``, at least five seconds apart: with fewer
        than ``read_buffer`` look-ups and no writes in that time the window is longer than asked for.
        """
        if isinstance(seconds, str) or not seconds > 0:
            raise KvpredictError(f"seconds must be a number above 0, got {seconds!r}")
        for age, earlier in reversed(self.marks):
            if age >= seconds:
                kept = {"entries", "size", "capacity", "policy", "marks"}
                change = {
                    name: getattr(self, name) - getattr(earlier, name) for name in self._fields if name not in kept
                }
                return self._replace(**change, marks=())
        return self._replace(marks=())


class Marks:
    """Counts put aside, each with its time; ``due`` is when the next one is."""

    __slots__ = ("_kept", "due")

    def __init__(self, now: float) -> None:
        self._kept: deque[tuple[float, Stats]] = deque()
        self.due = now + EVERY

    def add(self, now: float, counts: Stats) -> None:
        """Put ``counts`` aside."""
        self._kept.append((now, counts))
        while self._kept[0][0] < now - KEPT:
            self._kept.popleft()
        self.due = now + EVERY

    def seen(self, now: float) -> tuple[tuple[float, Stats], ...]:
        """Return what was put aside, each with its age."""
        return tuple((now - time, counts) for time, counts in self._kept)
