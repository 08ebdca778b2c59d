"""The in-process cache, and what can be put around it; parts beyond the cache itself are imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

from kvpredict.cache.cache import AccessRecorder, Cache
from kvpredict.cache.errors import (
    CodecError,
    LoadTimeout,
    SnapshotError,
    TierError,
    TooManyLoads,
    UnknownKey,
    WriteBehindError,
)
from kvpredict.cache.expiry import Expiry
from kvpredict.cache.keys import stable_hash
from kvpredict.cache.loads import Loaded, Loads
from kvpredict.cache.removal import Cause
from kvpredict.cache.stats import Stats

if TYPE_CHECKING:
    from kvpredict.cache.behind import ERASED, WriteBehind
    from kvpredict.cache.bloom import BloomFilter
    from kvpredict.cache.bus import RedisInvalidation
    from kvpredict.cache.codec import Codec, train_dictionary
    from kvpredict.cache.decorator import CacheInfo, cached, caching_off, set_caching
    from kvpredict.cache.disk import DiskTier
    from kvpredict.cache.metrics import register_metrics
    from kvpredict.cache.prefetch import Prefetcher, PrefetchStats
    from kvpredict.cache.redis_tier import RedisTier
    from kvpredict.cache.shadow import Forecast, Shadow
    from kvpredict.cache.snapshot import Restored, load_snapshot, save_snapshot
    from kvpredict.cache.through import WriteThrough
    from kvpredict.cache.tiered import TieredCache, TierStats
    from kvpredict.cache.tiers import Guarded, Tier
    from kvpredict.cache.tuner import Decision, Tuner
    from kvpredict.cache.warm import WarmedUp, warm_up

# Where each of the other public names lives.
_LAZY = {
    "ERASED": "behind",
    "BloomFilter": "bloom",
    "CacheInfo": "decorator",
    "Codec": "codec",
    "Decision": "tuner",
    "DiskTier": "disk",
    "Forecast": "shadow",
    "Guarded": "tiers",
    "PrefetchStats": "prefetch",
    "Prefetcher": "prefetch",
    "RedisInvalidation": "bus",
    "RedisTier": "redis_tier",
    "Restored": "snapshot",
    "Shadow": "shadow",
    "Tier": "tiers",
    "TierStats": "tiered",
    "TieredCache": "tiered",
    "Tuner": "tuner",
    "WarmedUp": "warm",
    "WriteBehind": "behind",
    "WriteThrough": "through",
    "cached": "decorator",
    "caching_off": "decorator",
    "load_snapshot": "snapshot",
    "register_metrics": "metrics",
    "save_snapshot": "snapshot",
    "set_caching": "decorator",
    "train_dictionary": "codec",
    "warm_up": "warm",
}

__all__ = [
    "ERASED",
    "AccessRecorder",
    "BloomFilter",
    "Cache",
    "CacheInfo",
    "Cause",
    "Codec",
    "CodecError",
    "Decision",
    "DiskTier",
    "Expiry",
    "Forecast",
    "Guarded",
    "LoadTimeout",
    "Loaded",
    "Loads",
    "PrefetchStats",
    "Prefetcher",
    "RedisInvalidation",
    "RedisTier",
    "Restored",
    "Shadow",
    "SnapshotError",
    "Stats",
    "Tier",
    "TierError",
    "TierStats",
    "TieredCache",
    "TooManyLoads",
    "Tuner",
    "UnknownKey",
    "WarmedUp",
    "WriteBehind",
    "WriteBehindError",
    "WriteThrough",
    "cached",
    "caching_off",
    "load_snapshot",
    "register_metrics",
    "save_snapshot",
    "set_caching",
    "stable_hash",
    "train_dictionary",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
