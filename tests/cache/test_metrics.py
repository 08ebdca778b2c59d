"""Prometheus reads what the cache counts, and the dashboard asks only for what there is."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvpredict.cache import Cache, DiskTier, Prefetcher, TieredCache, register_metrics
from kvpredict.core.errors import KvpredictError

ROOT = Path(__file__).resolve().parents[2]


def test_counts_are_scraped(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    cache: Cache[int, int] = Cache(2, "lru")
    collector = register_metrics("orders", cache, registry=registry)
    for key in (1, 2, 3, 3):
        cache.get_or_load(key, lambda key: key)
    assert registry.get_sample_value("kvpredict_cache_hits_total", {"cache": "orders"}) == 1
    assert registry.get_sample_value("kvpredict_cache_misses_total", {"cache": "orders"}) == 3
    assert registry.get_sample_value("kvpredict_cache_evictions_total", {"cache": "orders"}) == 1
    assert registry.get_sample_value("kvpredict_cache_entries", {"cache": "orders"}) == 2
    assert registry.get_sample_value("kvpredict_cache_policy_info", {"cache": "orders", "policy": "lru"}) == 1
    cache.swap_policy("sieve")
    assert registry.get_sample_value("kvpredict_cache_policy_info", {"cache": "orders", "policy": "sieve"}) == 1
    collector.unregister()
    assert b"orders" not in generate_latest(registry)


def test_caches_share_a_registry_each_under_its_own_name() -> None:
    registry = CollectorRegistry(auto_describe=True)  # as prometheus_client's own
    caches = [Cache[int, int](capacity, "lru") for capacity in (3, 4)]
    first = register_metrics("a", caches[0], registry=registry)
    register_metrics("b", caches[1], registry=registry)
    with pytest.raises(KvpredictError, match="'a' already"):
        register_metrics("a", caches[1], registry=registry)
    text = generate_latest(registry).decode()
    assert text.count("# TYPE kvpredict_cache_capacity gauge") == 1
    assert [registry.get_sample_value("kvpredict_cache_capacity", {"cache": name}) for name in "ab"] == [3, 4]
    first.unregister()
    register_metrics("a", caches[1], registry=registry)
    assert registry.get_sample_value("kvpredict_cache_capacity", {"cache": "a"}) == 4
    for wrong in (("x", 5), (5, caches[0])):
        with pytest.raises(KvpredictError, match="must be"):
            register_metrics(*wrong, registry=registry)  # type: ignore[arg-type]
    assert b'"x"' not in generate_latest(registry)


def test_the_dashboard_asks_for_metrics_that_exist(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with TieredCache[int, int](2, "lru", tiers=[DiskTier(tmp_path / "t.db", 10**6)]) as cache:
        register_metrics("tiered", cache, registry=registry, prefetcher=Prefetcher(Cache[int, int](10), abs))
        for key in (1, 2, 3, 1):
            cache.get_or_load(key, lambda key: key)
        text = generate_latest(registry).decode()
    assert 'kvpredict_cache_tier_hits_total{cache="tiered",tier="disk' in text
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"kvpredict_cache_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert {name for name in asked if f"\n{name}{{" not in text} == set()
