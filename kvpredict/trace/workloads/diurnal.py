"""Diurnal: traffic follows the day, and regions of the world take turns.

Interactive systems see peaks in the evening and troughs at night, and what is popular moves with the region that is
awake. A cache sized for the peak idles at night, and what was evicted then is wanted again a day later: policies that
only look at the recent past forget it each night.

Atikoglu et al., "Workload Analysis of a Large-Scale Key-Value Store", SIGMETRICS 2012, section 4.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import DAY, day_curve, pick, rhythm, spread_keys, zipf_ranks

__all__ = ["Diurnal"]


@dataclass(frozen=True)
class Diurnal(Workload):
    """A daily rhythm of traffic and of popularity.

    Parameters
    ----------
    requests : int, default 1_000_000
    objects : int, default 100_000
        Objects, in equal parts: one for each region, and one that all regions share.
    alpha : float, default 0.9
        Skew within a region.
    days : float, default 7
        Length of the trace.
    regions : int, default 3
        Regions with objects of their own; each has the traffic of its rank: 1, 1/2, 1/3 …
    zone_hours : float, default 6
        Hours between the peaks of a region and the next.
    amplitude : float, default 0.9
        Height of the rhythm: 0 is flat, 1 falls to nothing at night.
    shared : float, default 0.3
        Share of requests for objects that all regions use.

    The column ``region`` tells who asks.
    """

    name = "diurnal"

    requests: int = param(1_000_000, 1)
    objects: int = param(100_000, 1)
    alpha: float = param(0.9, 0, 10)
    days: float = param(7.0, 0.01, 3650)
    regions: int = param(3, 1, 24)
    zone_hours: float = param(6.0, 0, 24)
    amplitude: float = param(0.9, 0, 1)
    shared: float = param(0.3, 0, 1)

    def check(self) -> None:
        if self.objects <= self.regions:
            self.reject("objects", f"must be more than the number of regions ({self.regions})")

    def _generate(self, rng: np.random.Generator) -> Trace:
        region = pick(rng, 1.0 / np.arange(1, self.regions + 1), self.requests)
        times = np.empty(self.requests)
        for r in range(self.regions):
            curve = day_curve(self.days, self.amplitude, peak_hour=20.0 + r * self.zone_hours)
            mine = region == r
            times[mine] = rhythm(rng, int(np.count_nonzero(mine)), curve, self.days * DAY)
        order = np.argsort(times, kind="stable")
        times, region = times[order], region[order]
        each = self.objects // (self.regions + 1)
        group = np.where(rng.random(self.requests) < self.shared, self.regions, region)
        ranks = zipf_ranks(rng, self.requests, each, self.alpha)
        keys = spread_keys(rng, each * (self.regions + 1))[group * each + ranks]
        names = tuple(f"region-{r + 1}" for r in range(self.regions))
        return Trace(keys, times, columns={"region": region.astype(np.int8)}, categories={"region": names})
