"""Warm-up: the hottest keys of a recorded trace, loaded before the first request comes.

A trace knows a key that is no integer by its hash alone, so whoever warms a cache by such keys says which there are.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from kvpredict.cache.cache import Cache
from kvpredict.cache.keys import stable_hash
from kvpredict.core.arguments import whole_number
from kvpredict.trace import Trace, read_trace

__all__ = ["WarmedUp", "warm_up"]

log = logging.getLogger("kvpredict")


class WarmedUp(NamedTuple):
    """What came of a warm-up."""

    loaded: int
    failed: int
    unknown: int  # hot keys that are not among ``keys``


def warm_up(
    cache: Cache[Any, Any],
    trace: "Trace | str | PathLike[str]",
    loader: Callable[[Any], Any] | None = None,
    *,
    keys: Iterable[Any] | None = None,
    limit: int | None = None,
    workers: int = 4,
) -> WarmedUp:
    """Load the keys that a trace asks for most.

    Parameters
    ----------
    cache : Cache
    trace : Trace or path
        Such as a ``Recorder`` writes.
    loader : callable, optional
        Default: the cache's own.
    keys : iterable, optional
        The keys there are, where they are no integers; those not in the trace are passed over.
    limit : int, optional
        The most keys. Default: the cache's capacity.
    workers : int, default 4
        Loads at once.

    The hottest is loaded last, so that it is the newest to the policy. A load that fails is logged and counted.

    >>> trace = Trace.from_keys([1, 2, 2, 3, 3, 3])
    >>> cache = Cache(10, "lru")
    >>> warm_up(cache, trace, lambda key: -key, limit=2), sorted(cache)
    (WarmedUp(loaded=2, failed=0, unknown=0), [2, 3])
    """
    loader = cache._able(loader)
    limit = cache.capacity if limit is None else whole_number("limit", limit)
    workers = whole_number("workers", workers)
    if not isinstance(trace, Trace):
        trace = read_trace(trace)
    numbers, counts = np.unique(trace.keys, return_counts=True)
    hottest = numbers[np.argsort(-counts, kind="stable")[:limit]][::-1].tolist()
    known = None if keys is None else {stable_hash(key): key for key in keys}
    wanted = hottest if known is None else [known[number] for number in hottest if number in known]

    def load(key: Any) -> bool:
        try:
            cache.get_or_load(key, loader)
        except Exception as error:
            log.warning("key %r was not loaded in the warm-up: %r", key, error)
            return False
        return True

    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(load, wanted))
    return WarmedUp(sum(outcomes), len(outcomes) - sum(outcomes), len(hottest) - len(wanted))
