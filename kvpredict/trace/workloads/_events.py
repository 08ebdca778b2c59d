"""Events of a scenario, collected by kind of object and cut, sorted and sized into a trace at the end.

A scenario's requests come in groups (a session, a payment); ``trace`` keeps whole groups up to the wanted number of
requests, the last one cut short, so that the number is exact and no stretch of time is thinned.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvpredict.trace.trace import Trace

__all__ = ["Events"]


class Events:
    """Collects events over objects of several kinds.

    Parameters
    ----------
    sizes : mapping of kind to int64 array
        The size of each object of a kind; object ``i`` of the k-th kind gets key ``i`` plus the number of objects of
        the kinds before it.
    ops : sequence of str
        Names of the operations.
    """

    def __init__(self, sizes: Mapping[str, np.ndarray], ops: tuple[str, ...]) -> None:
        self.kinds = tuple(sizes)
        self.ops = ops
        self.sizes = np.concatenate(list(sizes.values()))
        self.base = dict(zip(self.kinds, np.cumsum([0, *(s.size for s in sizes.values())]).tolist(), strict=False))
        self.parts: list[tuple[Any, ...]] = []

    def add(self, group: np.ndarray, time: np.ndarray, kind: str, index: np.ndarray, op: str, **extra: Any) -> None:
        """Add one event for each element of ``group``: at ``time``, operation ``op`` on object ``index`` of a kind."""
        n = group.size
        kinds = np.full(n, self.kinds.index(kind), np.int8)
        ops = np.full(n, self.ops.index(op), np.int8)
        self.parts.append((group, time, self.base[kind] + index, kinds, ops, extra))

    def trace(self, requests: int, categories: Mapping[str, tuple[str, ...]] | None = None) -> Trace:
        """Return the first ``requests`` events in order of groups, sorted by time."""
        group, time, key, kind, op = (np.concatenate([part[i] for part in self.parts]) for i in range(5))
        names = self.parts[0][5]
        extra = {name: np.concatenate([part[5][name] for part in self.parts]) for name in names}
        whole = np.bincount(group)
        ends = np.cumsum(whole)
        last = int(np.searchsorted(ends, requests))  # the group that is cut short
        keep = group < last
        rest = np.flatnonzero(group == last)
        rest = rest[np.argsort(time[rest], kind="stable")]
        keep[rest[: requests - int(np.count_nonzero(keep))]] = True
        chosen = np.flatnonzero(keep)
        chosen = chosen[np.argsort(time[chosen], kind="stable")]
        key = key[chosen]
        return Trace(
            key,
            time[chosen],
            self.sizes[key],
            {"op": op[chosen], "kind": kind[chosen], **{name: column[chosen] for name, column in extra.items()}},
            categories={"op": self.ops, "kind": self.kinds, **(categories or {})},
        )
