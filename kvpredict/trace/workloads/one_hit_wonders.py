"""One-hit wonders: most objects are requested once and never again.

The staple of content delivery: at Akamai about three quarters of the objects were requested only once, so a cache that
admits everything spends most of its writes and space on them. Admission filters and small probationary queues pay.

Maggs and Sitaraman, "Algorithmic Nuggets in Content Delivery", SIGCOMM CCR 45(3), 2015; Yang et al., "FIFO Queues are
All You Need for Cache Eviction", SOSP 2023, section 3.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import arrivals, lognormal_sizes, spread_keys, zipf_ranks

__all__ = ["OneHitWonders"]


@dataclass(frozen=True)
class OneHitWonders(Workload):
    """A Zipf core among objects that come once, with sizes.

    Parameters
    ----------
    requests : int, default 1_000_000
    objects : int, default 60_000
        Objects of the core; each is requested at least twice.
    one_hit_ratio : float, default 0.75
        Share of all distinct objects that are requested exactly once.
    alpha : float, default 0.8
        Skew of the core.
    rate : float, default 1000
        Requests a second.
    size_median : float, default 20_000
        Median object size in bytes.
    size_sigma : float, default 1.5
        Standard deviation of the logarithm of the sizes.
    """

    name = "one_hit_wonders"

    requests: int = param(1_000_000, 1)
    objects: int = param(60_000, 1)
    one_hit_ratio: float = param(0.75, 0, 0.999)
    alpha: float = param(0.8, 0, 10)
    rate: float = param(1000.0, 1e-6)
    size_median: float = param(20_000.0, 1)
    size_sigma: float = param(1.5, 0, 10)

    @property
    def once(self) -> int:
        """How many objects are requested once."""
        return round(self.objects * self.one_hit_ratio / (1 - self.one_hit_ratio))

    def check(self) -> None:
        needed = 2 * self.objects + self.once
        if self.requests < needed:
            self.reject("requests", f"must be at least {needed} (two for each of the objects, one for each other)")

    def _generate(self, rng: np.random.Generator) -> Trace:
        core, once = self.objects, self.once
        more = zipf_ranks(rng, self.requests - 2 * core - once, core, self.alpha)
        which = np.concatenate([np.tile(np.arange(core), 2), np.arange(core, core + once), more])
        rng.shuffle(which)
        sizes = lognormal_sizes(rng, core + once, self.size_median, self.size_sigma)
        keys = spread_keys(rng, core + once)
        return Trace(keys[which], arrivals(rng, self.requests, self.rate), sizes[which])
