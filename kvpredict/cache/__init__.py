"""The in-process cache."""

from kvpredict.cache.cache import AccessRecorder, Cache
from kvpredict.cache.keys import stable_hash
from kvpredict.cache.stats import Stats

__all__ = ["AccessRecorder", "Cache", "Stats", "stable_hash"]
