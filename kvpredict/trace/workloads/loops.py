"""Loops: a program goes round and round over its data, one loop after another, with a little else between.

Scientific codes, nested-loop joins and nightly batch jobs read like this. With a loop longer than the cache LRU
evicts each block just before its next use and never hits; an optimal policy keeps a fixed part of the loop.

Smaragdakis, Kaplan and Wilson, "EELRU: Simple and Effective Adaptive Page Replacement", SIGMETRICS 1999; Jiang and
Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy", SIGMETRICS 2002.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import arrivals, spread_keys, zipf_ranks

__all__ = ["Loops"]


@dataclass(frozen=True)
class Loops(Workload):
    """Cyclic reads, with Zipf look-ups between.

    Parameters
    ----------
    requests : int, default 1_000_000
    loops : int, default 4
        How many loops, each over blocks of its own, follow each other in equal parts.
    loop_length : int, default 20_000
        Blocks of a loop.
    lookup_share : float, default 0.1
        Share of requests that are look-ups outside the loop, in random places.
    objects : int, default 5_000
        Objects that look-ups choose from.
    alpha : float, default 0.9
        Skew of the look-ups.
    rate : float, default 1000
        Requests a second.

    The column ``op`` tells ``loop`` from ``get``.
    """

    name = "loops"

    requests: int = param(1_000_000, 1)
    loops: int = param(4, 1)
    loop_length: int = param(20_000, 1)
    lookup_share: float = param(0.1, 0, 1)
    objects: int = param(5_000, 1)
    alpha: float = param(0.9, 0, 10)
    rate: float = param(1000.0, 1e-6)

    def _generate(self, rng: np.random.Generator) -> Trace:
        op = (rng.random(self.requests) < self.lookup_share).astype(np.int8)
        steps = np.arange(int(np.count_nonzero(op == 0)))
        which = steps * self.loops // max(steps.size, 1)
        keys = np.empty(self.requests, np.int64)
        keys[op == 0] = which * self.loop_length + steps % self.loop_length
        ranks = zipf_ranks(rng, self.requests - steps.size, self.objects, self.alpha)
        keys[op == 1] = spread_keys(rng, self.objects, base=self.loops * self.loop_length)[ranks]
        times = arrivals(rng, self.requests, self.rate)
        return Trace(keys, times, columns={"op": op}, categories={"op": ("loop", "get")})
