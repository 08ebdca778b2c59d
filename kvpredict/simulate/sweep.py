"""Sweeps: many policies at many capacities over one trace, and the miss-ratio curves they make.

Replay releases the GIL, so threads use all cores while the trace's columns and ids exist once.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpredict.core.engine import bind
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.load import as_policy
from kvpredict.policies.lru import LRU
from kvpredict.simulate.progress import Progress
from kvpredict.simulate.result import Result
from kvpredict.simulate.reuse import reuse_distances
from kvpredict.simulate.simulate import check_trace, simulate, whole_capacity
from kvpredict.trace.trace import Trace

__all__ = ["Curve", "gap_closed", "miss_ratio_curve", "sweep"]


@dataclass(frozen=True)
class Curve:
    """Miss ratios of one policy over rising capacities; all arrays ``[points]``."""

    policy: str
    unit: str
    requests: int  # counted
    capacity: np.ndarray  # int64
    object_miss_ratio: np.ndarray  # float64
    byte_miss_ratio: np.ndarray  # float64


def sweep(
    trace: Trace,
    policies: str | Policy | Iterable[str | Policy],
    capacities: float | Iterable[float],
    *,
    unit: str = "objects",
    warmup: float = 0.0,
    seed: int = 0,
    jobs: int | None = None,
    progress: bool | None = None,
    keep_hits: bool = False,
) -> list[Result]:
    """Simulate every policy at every capacity.

    Parameters
    ----------
    trace : Trace
    policies : str, Policy or iterable of them
    capacities : int, float or iterable of them
        Units of capacity; a float below 1 is a fraction of the distinct keys, or of the footprint in bytes.
    unit, warmup, seed
        As for ``simulate``.
    jobs : int, optional
        Threads. Default: the cores this process may use.
    progress : bool, optional
        True or False to show a bar or not. Default: on a terminal, once the work has taken over a second.
    keep_hits : bool, default False
        Keep what ``Result.series`` needs, a byte for each request of each result.

    Returns
    -------
    list of Result
        All capacities of the first policy, then of the next.

    >>> trace = Trace.from_keys([1, 2, 3, 1, 2, 3, 1])
    >>> [result.hits for result in sweep(trace, ["lru", "belady"], [1, 2, 3])]
    [0, 0, 4, 0, 2, 4]
    """
    chosen = [as_policy(p) for p in ([policies] if isinstance(policies, str | Policy) else policies)]
    units = _capacities(trace, capacities, unit)
    if jobs is not None and jobs < 1:
        raise KvpredictError(f"jobs must be at least 1, got {jobs}")
    cells = [(policy, capacity) for policy in chosen for capacity in units]
    # What is derived from the trace, and the engines, are made once, before threads could make them twice.
    _ = trace.ids
    if any(policy.traits.oracle for policy in chosen):
        _ = trace.next_use
    for policy in chosen:
        bind(policy)

    def run(policy: Policy, capacity: int) -> Result:
        result = simulate(trace, policy, capacity, unit=unit, warmup=warmup, seed=seed)
        return result if keep_hits else result.summary()

    bar = Progress(len(cells), progress)
    with ThreadPoolExecutor(min(jobs or _cores(), max(len(cells), 1))) as pool:
        futures: list[Future[Result]] = [pool.submit(run, *cell) for cell in cells]
        try:
            running: Any = futures
            while running:
                finished, running = wait(running, timeout=0.2, return_when="FIRST_EXCEPTION")
                for future in finished:
                    future.result()
                bar.update(sum(future.done() for future in futures))
        finally:  # after an error or an interrupt, what has not begun is dropped
            bar.close()
            pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() for future in futures]


def miss_ratio_curve(
    trace: Trace,
    policy: str | Policy = "lru",
    capacities: Sequence[float] | None = None,
    *,
    points: int = 30,
    unit: str = "objects",
    warmup: float = 0.0,
    seed: int = 0,
    jobs: int | None = None,
    progress: bool | None = None,
) -> Curve:
    """Return the miss ratios of ``policy`` over capacities.

    Parameters
    ----------
    trace : Trace
    policy : str or Policy, default "lru"
        LRU over objects is computed at all capacities in one pass, exactly; others are simulated at each.
    capacities : sequence of int or float, optional
        As for ``sweep``. Default: ``points`` of them, evenly spaced on a logarithmic axis up to all keys, or the
        footprint.
    points : int, default 30
    unit, warmup, seed, jobs, progress
        As for ``sweep``.

    Returns
    -------
    Curve

    >>> trace = Trace.from_keys([1, 2, 3, 1, 2, 3, 1])
    >>> miss_ratio_curve(trace, "lru", [1, 2, 3]).object_miss_ratio.round(3).tolist()
    [1.0, 1.0, 0.429]
    """
    check_trace(trace)
    policy = as_policy(policy)
    if capacities is None:
        if points < 1:
            raise KvpredictError(f"points must be at least 1, got {points}")
        largest = max(1, trace.unique if unit == "objects" else trace.footprint)
        spaced = np.geomspace(max(1, largest // 1000), largest, points).round()
        capacities = [int(c) for c in spaced]
    units = np.unique(np.array(_capacities(trace, capacities, unit), np.int64))
    if type(policy) is LRU and unit == "objects":
        return _lru_curve(trace, units, warmup)
    results = sweep(trace, policy, units.tolist(), unit=unit, warmup=warmup, seed=seed, jobs=jobs, progress=progress)
    return Curve(
        policy=policy.name,
        unit=unit,
        requests=len(trace) - trace.position(warmup),
        capacity=units,
        object_miss_ratio=np.array([r.object_miss_ratio for r in results], np.float64),
        byte_miss_ratio=np.array([r.byte_miss_ratio for r in results], np.float64),
    )


def gap_closed(
    lru: Result | float, policy: Result | float, belady: Result | float, objective: str = "objects"
) -> float:
    """Return how much of the gap between LRU's and Belady's misses a policy closes.

    1 equals Belady, 0 equals LRU, below 0 is worse than LRU; nan where there is no gap. Takes results, of which
    ``objective`` says what a miss counts for, or ratios of the same requests.

    >>> gap_closed(0.5, 0.4, 0.3)
    0.5
    """
    reference, reached, best = (r.loss(objective) if isinstance(r, Result) else float(r) for r in (lru, policy, belady))
    gap = reference - best
    return round((reference - reached) / gap, 12) if gap > 0 else float("nan")


def _lru_curve(trace: Trace, capacities: np.ndarray, warmup: float) -> Curve:
    cut = trace.position(warmup)
    distances = reuse_distances(trace.ids, trace.unique)[cut:]
    sizes = None if trace.sizes is None else np.maximum(trace.sizes[cut:], 1).astype(np.float64)
    total = float(distances.size if sizes is None else sizes.sum())
    # Bin 0 holds the first requests of keys; a request of distance d hits from capacity d + 1 on.
    count = np.bincount(distances + 1, minlength=2)
    weight = count if sizes is None else np.bincount(distances + 1, sizes, minlength=2)
    reach = np.minimum(capacities, count.size - 1)
    with np.errstate(invalid="ignore"):  # no request: nan, as in Result
        objects = 1 - (np.cumsum(count)[reach] - count[0]) / np.float64(distances.size)
        volume = 1 - (np.cumsum(weight)[reach] - weight[0]) / np.float64(total)
    return Curve("lru", "objects", int(distances.size), capacities, objects, volume)


def _capacities(trace: Trace, given: float | Iterable[float], unit: str) -> list[int]:
    """Return capacities in units; a float below 1 is a fraction."""
    listed = list(given) if isinstance(given, Iterable) else [given]
    return [
        trace.capacity(float(c), unit) if isinstance(c, float | np.floating) and 0 < c < 1 else whole_capacity(c, unit)
        for c in listed
    ]


def _cores() -> int:
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
