"""Result: what one replay measured."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.core.objective import check_objective

__all__ = ["LOSSES", "Result", "Series"]

LOSSES = {"objects": "object_miss_ratio", "bytes": "byte_miss_ratio", "cost": "mean_miss_cost"}  # by objective


@dataclass(frozen=True)
class Series:
    """Miss ratios over the counted requests in equal windows; all arrays ``[windows]``."""

    start: np.ndarray  # index in the trace of each window's first request
    requests: np.ndarray
    object_miss_ratio: np.ndarray
    byte_miss_ratio: np.ndarray


@dataclass(frozen=True)
class Result:
    """Counts of one policy on one trace at one capacity; requests before ``warmup`` are not in them.

    ``seconds`` is the wall time of the whole replay, warm-up included and compilation not; ``total_requests`` are the
    requests replayed in it. ``writes`` are the misses that were admitted. ``account`` is what the policy says of its
    work, warm-up included (``Policy.account``). ``miss_cost`` is the sum of the trace's column ``cost`` over the
    misses, None without one.
    ``hit`` and ``sizes`` hold every request; ``summary()`` drops them.
    """

    policy: str
    capacity: int
    unit: str
    requests: int
    hits: int
    bytes: int
    hit_bytes: int
    total_requests: int
    seconds: float
    warmup: int = 0
    seed: int = 0
    writes: int = 0
    account: dict[str, Any] = field(default_factory=dict, repr=False)
    miss_cost: float | None = None
    hit: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8), repr=False)  # uint8 [total_requests]
    sizes: np.ndarray | None = field(default=None, repr=False)  # int64 [total_requests]

    @property
    def misses(self) -> int:
        return self.requests - self.hits

    def loss(self, objective: str) -> float:
        """Return what there is to lower: the object or byte miss ratio, or with "cost" the mean cost of a request.

        Misses of a trace without costs cost 1 each.
        """
        check_objective(objective)
        return float(getattr(self, LOSSES[objective]))

    @property
    def object_miss_ratio(self) -> float:
        """Misses over requests; nan when no request was counted."""
        return self.misses / self.requests if self.requests else float("nan")

    @property
    def byte_miss_ratio(self) -> float:
        """Bytes missed over bytes requested; nan when no request was counted."""
        return (self.bytes - self.hit_bytes) / self.bytes if self.bytes else float("nan")

    @property
    def mean_miss_cost(self) -> float:
        """Cost of the misses over requests, misses of a trace without costs cost 1 each; nan for no requests."""
        if self.miss_cost is None or not self.requests:
            return self.object_miss_ratio
        return self.miss_cost / self.requests

    @property
    def write_ratio(self) -> float:
        """Writes over requests, which wear a flash device; nan when no request was counted."""
        return self.writes / self.requests if self.requests else float("nan")

    @property
    def requests_per_second(self) -> float:
        return self.total_requests / self.seconds if self.seconds > 0 else float("inf")

    def mean_latency(self, hit: float, miss: float | np.ndarray | None = None) -> float:
        """Return D = (hits * c + sum of the misses' costs) / requests.

        Parameters
        ----------
        hit : float
            c, the cost of a hit, in any unit of time.
        miss : float or array [total_requests], optional
            d, the cost of a miss, one for all or one for each request. Default: the trace's column ``cost``.

        Raises
        ------
        KvpredictError
            When there is no ``miss`` and the trace had no costs, or ``miss`` does not fit the requests.

        >>> Result("lru", 10, "objects", requests=4, hits=3, bytes=4, hit_bytes=3, total_requests=4,
        ...     seconds=1.0).mean_latency(hit=1.0, miss=9.0)
        3.0
        """
        if not self.requests:
            return float("nan")
        if miss is None:
            if self.miss_cost is None:
                raise KvpredictError("the trace has no column 'cost': give the cost of a miss, mean_latency(hit, miss)")
            total = self.miss_cost
        elif np.ndim(miss) == 0:
            total = self.misses * float(miss)
        else:
            costs = np.asarray(miss, np.float64)
            if costs.shape != (self.total_requests,):
                raise KvpredictError(f"miss has shape {costs.shape}: give one cost, or {self.total_requests}")
            total = float(costs[self.warmup :][self._counted() == 0].sum())
        return (self.hits * hit + total) / self.requests

    def series(self, windows: int = 100) -> Series:
        """Return the miss ratios in at most ``windows`` equal windows of the counted requests."""
        if windows < 1:
            raise KvpredictError(f"windows must be at least 1, got {windows}")
        counted = self._counted()
        edges = np.unique(np.linspace(0, counted.size, min(windows, max(counted.size, 1)) + 1).astype(int))[:-1]
        if counted.size == 0:
            empty = np.zeros(0)
            return Series(empty.astype(int), empty.astype(int), empty, empty)
        lengths = np.diff(np.append(edges, counted.size))
        missed = (counted == 0).astype(np.float64)
        object_ratio = np.add.reduceat(missed, edges) / lengths
        if self.sizes is None:
            byte_ratio = object_ratio
        else:
            sizes = np.maximum(self.sizes[self.warmup :], 1).astype(np.float64)
            byte_ratio = np.add.reduceat(missed * sizes, edges) / np.add.reduceat(sizes, edges)
        return Series(edges + self.warmup, lengths, object_ratio, byte_ratio)

    def summary(self) -> "Result":
        """Return the counts alone, without what is kept for each request."""
        return replace(self, hit=np.zeros(0, np.uint8), sizes=None)

    def _counted(self) -> np.ndarray:
        """Return ``hit`` of the counted requests."""
        if self.hit.size != self.total_requests:
            raise KvpredictError("this result keeps no record of each request; sweep(..., keep_hits=True) does")
        return self.hit[self.warmup :]

    def as_row(self) -> dict[str, Any]:
        """Return the figures of a table's row; those of cost are None where the trace has none."""
        return {
            "policy": self.policy,
            "capacity": self.capacity,
            "unit": self.unit,
            "requests": self.requests,
            "hits": self.hits,
            "object_miss_ratio": self.object_miss_ratio,
            "byte_miss_ratio": self.byte_miss_ratio,
            "miss_cost": self.miss_cost,
            "mean_miss_cost": None if self.miss_cost is None else self.mean_miss_cost,
            "write_ratio": self.write_ratio,
            "requests_per_second": self.requests_per_second,
            "seconds": self.seconds,
        }
