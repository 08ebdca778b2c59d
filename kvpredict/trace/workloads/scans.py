"""Scans: a Zipf working set, interrupted by sequential runs over a large table that nobody needs again soon.

Reports, backups and analytical queries do this to database and file caches: under LRU one scan longer than the cache
flushes the whole working set. Scan-resistant policies keep new objects apart until they prove themselves.

Johnson and Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement Algorithm", VLDB 1994;
Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import arrivals, rank_in_group, spread_keys, zipf_ranks

__all__ = ["Scans"]


@dataclass(frozen=True)
class Scans(Workload):
    """Zipf look-ups, and scans that begin at random places of a table.

    Parameters
    ----------
    requests : int, default 1_000_000
    objects : int, default 50_000
        Objects of the working set; their keys lie above the table's.
    alpha : float, default 0.9
        Skew of the working set.
    table : int, default 500_000
        Blocks of the table that scans read, keys 0 to ``table - 1``.
    scan_length : int, default 20_000
        Blocks a scan reads one after the other.
    scan_share : float, default 0.3
        Share of all requests that belong to scans.
    rate : float, default 1000
        Requests a second.

    The column ``op`` tells ``get`` from ``scan``.
    """

    name = "scans"

    requests: int = param(1_000_000, 1)
    objects: int = param(50_000, 1)
    alpha: float = param(0.9, 0, 10)
    table: int = param(500_000, 1)
    scan_length: int = param(20_000, 1)
    scan_share: float = param(0.3, 0, 1)
    rate: float = param(1000.0, 1e-6)

    def check(self) -> None:
        if self.scan_length > self.table:
            self.reject("scan_length", f"must be at most the table's {self.table} blocks")

    def _generate(self, rng: np.random.Generator) -> Trace:
        scanned = round(self.requests * self.scan_share)
        scans = -(-scanned // self.scan_length)
        lengths = np.full(scans, self.scan_length)
        if scans:
            lengths[-1] = scanned - self.scan_length * (scans - 1)
        # A scan is not interrupted: each starts before one of the look-ups, chosen at random.
        before = np.sort(rng.integers(0, self.requests - scanned + 1, scans))
        first = before + np.cumsum(lengths) - lengths
        step = rank_in_group(lengths)
        at = np.repeat(first, lengths) + step
        keys = np.empty(self.requests, np.int64)
        op = np.zeros(self.requests, np.int8)
        op[at] = 1
        starts = rng.integers(0, self.table - self.scan_length + 1, scans)
        keys[at] = np.repeat(starts, lengths) + step
        ranks = zipf_ranks(rng, self.requests - scanned, self.objects, self.alpha)
        keys[op == 0] = spread_keys(rng, self.objects, base=self.table)[ranks]
        times = arrivals(rng, self.requests, self.rate)
        return Trace(keys, times, columns={"op": op}, categories={"op": ("get", "scan")})
