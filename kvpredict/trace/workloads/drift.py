"""Drift: objects are born, draw their requests over a limited life, and are forgotten.

The shot noise model of video and news: each object has a birth time, a total volume (Zipf over objects) and an
exponentially fading popularity. Counts of the past mislead here; LFU without ageing fills up with the dead, and a
policy is right as far as it follows the working set.

Traverso et al., "Temporal Locality in Today's Content Caching: Why it Matters and How to Model it", SIGCOMM CCR 43(5),
2013.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import pick, spread_keys, zipf_weights

__all__ = ["Drift"]

_LIVES = 5.0  # after so many mean lives less than 1 % of an object's requests are left


@dataclass(frozen=True)
class Drift(Workload):
    """Shifting popularity: shot noise.

    Parameters
    ----------
    requests : int, default 1_000_000
    objects : int, default 100_000
        Objects born during the trace, or shortly enough before it to be still requested.
    alpha : float, default 0.8
        Skew of the objects' volumes.
    rate : float, default 100
        Requests a second.
    life : float, default 1000
        Seconds in which an object's popularity falls by a factor of e.
    """

    name = "drift"

    requests: int = param(1_000_000, 1)
    objects: int = param(100_000, 1)
    alpha: float = param(0.8, 0, 10)
    rate: float = param(100.0, 1e-6)
    life: float = param(1000.0, 1e-3)

    def _generate(self, rng: np.random.Generator) -> Trace:
        span = self.requests / self.rate
        early = _LIVES * self.life
        birth = rng.uniform(-early, span, self.objects)
        # Of an object's volume, the part that falls inside the trace. Drawing each request from that part, and its
        # age from the exponential cut to the same window, gives exactly `requests` requests with none thrown away.
        # In units of the mean life; expm1 and log1p keep their digits for lives much longer than the trace.
        seen = np.maximum(birth, 0.0)
        share = -np.expm1(-(span - seen) / self.life)
        inside = np.exp(-(seen - birth) / self.life) * share
        which = pick(rng, zipf_weights(self.objects, self.alpha) * inside, self.requests)
        times = np.minimum(seen[which] - self.life * np.log1p(-rng.random(self.requests) * share[which]), span)
        order = np.argsort(times, kind="stable")
        return Trace(spread_keys(rng, self.objects)[which[order]], times[order])
