"""Zipf: independent requests, the object of rank r with probability proportional to 1 / r**alpha.

The model of web and key-value popularity: no recency beyond popularity, so LFU-like policies are at their best and an
ideal cache simply holds the top ranks. Web proxies show alpha between 0.64 and 0.83, in-memory caches about 1 and more.

Breslau et al., "Web Caching and Zipf-like Distributions: Evidence and Implications", INFOCOM 1999; lognormal sizes:
Barford and Crovella, "Generating Representative Web Workloads", SIGMETRICS 1998.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import arrivals, lognormal_sizes, spread_keys, zipf_ranks

__all__ = ["Zipf"]


@dataclass(frozen=True)
class Zipf(Workload):
    """Independent requests with Zipf popularity.

    Parameters
    ----------
    requests : int, default 1_000_000
    objects : int, default 100_000
        How many objects can be requested.
    alpha : float, default 1.0
        Skew; 0 makes all objects alike.
    rate : float, default 1000
        Requests a second (Poisson arrivals).
    size_median : float, default 0
        Median object size in bytes; 0 leaves sizes out.
    size_sigma : float, default 1.5
        Standard deviation of the logarithm of the sizes.

    >>> Zipf(requests=3, objects=10).generate(seed=7).keys.tolist()
    [8, 1, 7]
    """

    name = "zipf"

    requests: int = param(1_000_000, 1)
    objects: int = param(100_000, 1)
    alpha: float = param(1.0, 0, 10)
    rate: float = param(1000.0, 1e-6)
    size_median: float = param(0.0, 0)
    size_sigma: float = param(1.5, 0, 10)

    def _generate(self, rng: np.random.Generator) -> Trace:
        ranks = zipf_ranks(rng, self.requests, self.objects, self.alpha)
        keys = spread_keys(rng, self.objects)[ranks]
        times = arrivals(rng, self.requests, self.rate)
        sizes = None
        if self.size_median > 0:
            sizes = lognormal_sizes(rng, self.objects, self.size_median, self.size_sigma)[ranks]
        return Trace(keys, times, sizes)
