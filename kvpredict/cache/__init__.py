"""The in-process cache, and what can be put around it; parts beyond the cache itself are imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

from kvpredict.cache.cache import AccessRecorder, Cache
from kvpredict.cache.errors import LoadTimeout, TooManyLoads, UnknownKey
from kvpredict.cache.expiry import Expiry
from kvpredict.cache.keys import stable_hash
from kvpredict.cache.loads import Loaded, Loads
from kvpredict.cache.removal import Cause
from kvpredict.cache.stats import Stats

if TYPE_CHECKING:
    from kvpredict.cache.bloom import BloomFilter
    from kvpredict.cache.decorator import CacheInfo, cached, caching_off, set_caching

# Where each of the other public names lives.
_LAZY = {
    "BloomFilter": "bloom",
    "CacheInfo": "decorator",
    "cached": "decorator",
    "caching_off": "decorator",
    "set_caching": "decorator",
}

__all__ = [
    "AccessRecorder",
    "BloomFilter",
    "Cache",
    "CacheInfo",
    "Cause",
    "Expiry",
    "LoadTimeout",
    "Loaded",
    "Loads",
    "Stats",
    "TooManyLoads",
    "UnknownKey",
    "cached",
    "caching_off",
    "set_caching",
    "stable_hash",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
