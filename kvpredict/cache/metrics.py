"""Metrics: a cache's counts for Prometheus, read when they are scraped; nothing is counted twice on the way.

``docs/grafana.json`` is a dashboard over them.
"""

from collections.abc import Iterator
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from kvpredict.cache.arguments import with_methods
from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["Registration", "register_metrics"]

COUNTERS = {
    "hits": "Look-ups that found a value.",
    "misses": "Look-ups that found none.",
    "inserts": "New keys.",
    "updates": "New values of keys in the cache.",
    "evictions": "Entries that made room.",
    "expirations": "Entries taken out because their time was over.",
    "rejections": "Values that were not taken in.",
    "deletions": "Entries deleted or invalidated.",
    "loads": "Calls of a loader.",
    "load_failures": "Calls of a loader that raised.",
    "load_refusals": "Loads not begun, for want of a permit.",
    "refreshes": "Loads in the background that came back with a value.",
    "negative_hits": "Look-ups that found a failure kept.",
    "stale_served": "Values handed out past their time because a load failed or took too long.",
    "load_seconds": "Seconds spent in loaders.",
}
GAUGES = {"entries": "Entries.", "size": "Units in use.", "capacity": "Units that fit."}


TIERS = {"hits": "hits of a tier.", "misses": "misses of a tier.", "errors": "errors of a tier."}
PREFETCHES = ("predictions", "used", "wasted", "loads", "hits")


class Registration:
    """One cache that is scraped, until ``unregister``."""

    def __init__(self, sources: dict[str, tuple[Any, Any]], name: str) -> None:
        self._sources, self._name = sources, name

    def unregister(self) -> None:
        """End it; the name may then be used again."""
        self._sources.pop(self._name, None)


_registered: "WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]]" = WeakKeyDictionary()  # registry -> its caches
_lock = Lock()


def register_metrics(name: str, cache: Any, *, registry: Any = None, prefetcher: Any = None) -> Registration:
    """Have Prometheus scrape a cache.

    Parameters
    ----------
    name : str
        The value of the label ``cache``, another one for each cache of a registry.
    cache : Cache or TieredCache
    registry : prometheus_client.CollectorRegistry, optional
        Default: prometheus_client's own.
    prefetcher : Prefetcher, optional

    Returns
    -------
    Registration
        Its ``unregister`` ends it.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        raise MissingExtra('metrics need prometheus-client: pip install "kvpredict[cache]"') from None
    if not isinstance(name, str):
        raise KvpredictError(f"name must be a text, the label of the cache, got {name!r}")
    with_methods("cache", cache, "a Cache or TieredCache", "stats")
    if prefetcher is not None:
        with_methods("prefetcher", prefetcher, "a Prefetcher", "stats")
    registry = REGISTRY if registry is None else registry
    with _lock:
        sources = _registered.get(registry)
        if sources is None:
            sources = {}
            registry.register(_Collector(sources))
            _registered[registry] = sources
        if name in sources:
            raise KvpredictError(
                f"a cache is registered under the name {name!r} already: choose another one, or unregister that first"
            )
        sources[name] = (cache, prefetcher)
    return Registration(sources, name)


class _Collector:
    """What a registry scrapes: every metric once, with a row for each cache, made anew at each scrape."""

    def __init__(self, sources: dict[str, tuple[Any, Any]]) -> None:
        self._sources = sources

    def describe(self) -> list[Any]:
        """Return the metrics without rows: their names are this library's alone."""
        return list(_families().values())

    def collect(self) -> Iterator[Any]:
        """Yield the metrics that have rows."""
        families = _families()
        for name, (cache, prefetcher) in list(self._sources.items()):
            stats = cache.stats()
            for field in (*COUNTERS, *GAUGES):
                families[field].add_metric([name], getattr(stats, field))
            families["policy_info"].add_metric([name, getattr(cache, "memory", cache).policy.name], 1)
            for tier in cache.tier_stats() if hasattr(cache, "tier_stats") else ():
                for field in TIERS:
                    families[f"tier_{field}"].add_metric([name, tier.name], getattr(tier, field))
                families["tier_up"].add_metric([name, tier.name], int(tier.up))
            if prefetcher is not None:
                ahead = prefetcher.stats()
                for field in PREFETCHES:
                    families[f"prefetch_{field}"].add_metric([name], getattr(ahead, field))
                families["prefetch_active"].add_metric([name], int(ahead.active))
        yield from (family for family in families.values() if family.samples)


def _families() -> dict[str, Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    rows: list[tuple[Any, str, str, list[str]]]
    rows = [(CounterMetricFamily, field, meaning, []) for field, meaning in COUNTERS.items()]
    rows += [(GaugeMetricFamily, field, meaning, []) for field, meaning in GAUGES.items()]
    rows += [(GaugeMetricFamily, "policy_info", "The policy that decides.", ["policy"])]
    rows += [(CounterMetricFamily, f"tier_{field}", meaning, ["tier"]) for field, meaning in TIERS.items()]
    rows += [(GaugeMetricFamily, "tier_up", "Whether a tier is in use.", ["tier"])]
    rows += [(CounterMetricFamily, f"prefetch_{field}", f"{field} of prefetching.", []) for field in PREFETCHES]
    rows += [(GaugeMetricFamily, "prefetch_active", "Whether prefetching is on.", [])]
    return {
        field: kind(f"kvpredict_cache_{field}", meaning, labels=["cache", *labels])
        for kind, field, meaning, labels in rows
    }
