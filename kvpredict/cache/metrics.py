"""Metrics: a cache's counts for Prometheus, read when they are scraped; nothing is counted twice on the way.

``docs/grafana.json`` is a dashboard over them.
"""

from collections.abc import Iterator
from typing import Any

from kvpredict.core.errors import MissingExtra

__all__ = ["register_metrics"]

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


def register_metrics(name: str, cache: Any, *, registry: Any = None, prefetcher: Any = None) -> Any:
    """Have Prometheus scrape a cache.

    Parameters
    ----------
    name : str
        The value of the label ``cache``.
    cache : Cache or TieredCache
    registry : prometheus_client.CollectorRegistry, optional
        Default: prometheus_client's own.
    prefetcher : Prefetcher, optional

    Returns
    -------
    object
        The collector, to be unregistered with ``registry.unregister``.
    """
    try:
        from prometheus_client import REGISTRY
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError:
        raise MissingExtra('metrics need prometheus-client: pip install "kvpredict[cache]"') from None

    class Collector:
        """Made anew at each scrape from ``stats()``."""

        def collect(self) -> Iterator[Any]:
            stats = cache.stats()
            rows: list[Any]
            for field, meaning in COUNTERS.items():
                rows = [((), getattr(stats, field))]
                yield family(CounterMetricFamily, field, meaning, rows)
            for field, meaning in GAUGES.items():
                rows = [((), getattr(stats, field))]
                yield family(GaugeMetricFamily, field, meaning, rows)
            policy = getattr(cache, "memory", cache).policy.name
            yield family(GaugeMetricFamily, "policy_info", "The policy that decides.", [((policy,), 1)], ["policy"])
            if hasattr(cache, "tier_stats"):
                tiers = cache.tier_stats()
                for field in ("hits", "misses", "errors"):
                    rows = [((tier.name,), getattr(tier, field)) for tier in tiers]
                    yield family(CounterMetricFamily, f"tier_{field}", f"{field} of a tier.", rows, ["tier"])
                rows = [((tier.name,), int(tier.up)) for tier in tiers]
                yield family(GaugeMetricFamily, "tier_up", "Whether a tier is in use.", rows, ["tier"])
            if prefetcher is not None:
                ahead = prefetcher.stats()
                for field in ("predictions", "used", "wasted", "loads", "hits"):
                    rows = [((), getattr(ahead, field))]
                    yield family(CounterMetricFamily, f"prefetch_{field}", f"{field} of prefetching.", rows)
                rows = [((), int(ahead.active))]
                yield family(GaugeMetricFamily, "prefetch_active", "Whether prefetching is on.", rows)

    def family(kind: Any, field: str, meaning: str, rows: list[Any], labels: list[str] | None = None) -> Any:
        made = kind(f"kvpredict_cache_{field}", meaning, labels=["cache", *(labels or [])])
        for values, number in rows:
            made.add_metric([name, *values], number)
        return made

    collector = Collector()
    (REGISTRY if registry is None else registry).register(collector)
    return collector
