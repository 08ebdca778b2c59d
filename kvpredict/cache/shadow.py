"""Shadow: what other policies and sizes would have hit on the live keys.

A cache keeps the latest accesses of a spatial sample of its keys (``tap``); a cache of ``sample`` times the size, given
these alone, hits about as often as the whole one does. Replaying them through the simulator takes milliseconds a policy
and size, so any number of them can be asked about at any time, and nothing but the ring of accesses runs meanwhile.

Not seen: misses that were not followed by a put, and expiry, which no choice of policy changes.

Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015; "Cache Modeling and Optimization using
Miniature Simulations", USENIX ATC 2017.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kvpredict.cache.arguments import with_methods
from kvpredict.cache.cache import Cache
from kvpredict.cache.choice import choose_policy
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.simulate import simulate
from kvpredict.trace import Trace

__all__ = ["Forecast", "Shadow"]

ENTRIES = 2048  # that a miniature should have: with fewer, chance says as much as the policy


class Forecast(NamedTuple):
    """What one policy would hit at one capacity; ``accesses`` is the number of sampled ones that this rests on."""

    policy: str
    capacity: int
    hit_ratio: float
    accesses: int


class Shadow:
    """Watches a cache.

    Parameters
    ----------
    cache : Cache
    policies : sequence of str or Policy
    sample : float, optional
        Share of the keys watched. Default: as large a share as gives a miniature of 2,048 entries.
    window : int, default 100_000
        Sampled accesses kept, at 16 bytes each; the first half warms the miniatures and is not counted.

    >>> cache = Cache(2, "lru")
    >>> shadow = Shadow(cache, ["lru", "sieve"])
    >>> for key in [1, 2, 3] * 30:
    ...     _ = cache.get_or_load(key, lambda key: key)
    >>> [(one.capacity, one.hit_ratio) for one in shadow.curve("lru", [1.0, 1.5])]
    [(2, 0.0), (3, 1.0)]
    """

    def __init__(
        self,
        cache: Cache[Any, Any],
        policies: Sequence[str | Policy] = ("lru", "sieve", "s3fifo", "arc", "wtinylfu"),
        *,
        sample: float | None = None,
        window: int = 100_000,
    ) -> None:
        self.cache = with_methods("cache", cache, "a Cache", "tap", "tapped")
        self.policies = [choose_policy(each) for each in policies]
        if not self.policies:
            raise KvpredictError("policies must name at least one policy, got none")
        for chosen in self.policies:
            if chosen.extra:
                raise KvpredictError(
                    f"policy {chosen.name!r} reads columns that a shadow does not see ({', '.join(chosen.extra)}): "
                    "compare it by kvpredict.simulate on a recording"
                )
        self.sample = min(1.0, ENTRIES / cache._ranking.slots) if sample is None else float(sample)
        if not 0 < self.sample <= 1:
            raise KvpredictError(f"sample is a share of the keys, in (0, 1], got {sample!r}")
        self.window = whole_number("window", window)
        self._closed = False
        cache.tap(self.sample, self.window)

    def evaluate(self, sizes: Sequence[float] = (1.0,)) -> list[Forecast]:
        """Return what each policy would hit at each of ``sizes``, multiples of the present capacity."""
        trace, unit = self._seen()
        return [self._forecast(trace, unit, each, size) for each in self.policies for size in sizes]

    def curve(
        self, policy: str | Policy | None = None, sizes: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    ) -> list[Forecast]:
        """Return the hit ratio of one policy, by default the present one, over ``sizes``: the miss-ratio curve."""
        chosen = self.cache.policy if policy is None else choose_policy(policy)
        trace, unit = self._seen()
        return [self._forecast(trace, unit, chosen, size) for size in sizes]

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self.cache.tap(0.0, 1)

    def _seen(self) -> tuple[Trace, str]:
        if self._closed:
            raise KvpredictError("this shadow is closed and watches no more: make another one")
        rows, _ = self.cache.tapped()
        if len(rows) < 10:
            raise KvpredictError(f"only {len(rows)} accesses of the sampled keys were seen: wait, or sample more")
        sized = bool((rows[:, 1] != 1).any())
        return Trace(rows[:, 0].copy(), None, rows[:, 1].copy() if sized else None), "bytes" if sized else "objects"

    def _forecast(self, trace: Trace, unit: str, policy: Policy, size: float) -> Forecast:
        if not size > 0:
            raise KvpredictError(f"sizes are multiples of the capacity, above 0, got {size!r}")
        capacity = max(1, round(self.cache.capacity * size))
        miniature = max(1, round(capacity * self.sample))
        if unit == "bytes":
            assert trace.sizes is not None
            miniature = max(miniature, int(np.max(trace.sizes)))
        result = simulate(trace, policy, miniature, unit=unit, warmup=0.5)
        return Forecast(policy.name, capacity, 1.0 - result.object_miss_ratio, result.requests)
