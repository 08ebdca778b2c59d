"""LMCache: a ``BaseCachePolicy`` for its storage backends.

``lmcache/v1/storage_backend/cache_policy/base_policy.py``. LMCache names chunks one by one and not by request; a
prompt's chunks come in its order, so a chunk new to the policy follows the one seen before it within ``PAUSE`` seconds,
and a pause, or a chunk that does not follow, ends a request. ``install`` puts the policy into LMCache's
``POLICY_MAPPING`` under the name ``kvpredict``.
"""

import time
from collections import OrderedDict
from collections.abc import MutableMapping
from itertools import islice
from typing import Any

from kvpredict.llm.engines.guard import Safely, engine_module, install_into, key_number, policy_from_environment
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

try:
    from lmcache.v1.storage_backend.cache_policy.base_policy import (
        BaseCachePolicy as _Base,
    )
except ImportError:
    _Base = object

__all__ = ["KvpredictCachePolicy", "install"]

PAUSE = 0.5  # seconds


class KvpredictCachePolicy(_Base):
    """Evicts chunks by a kvpredict prefix policy, and by LRU after an error in it.

    Parameters
    ----------
    policy : str or PrefixPolicy, optional
        Default: what ``$KVPREDICT_PREFIX_POLICY`` names.
    capacity : int, default 65536
        Chunks that the policy's shadows hold.
    chunk_tokens : int, default 256
    """

    def __init__(
        self, policy: str | PrefixPolicy | None = None, capacity: int = 65536, chunk_tokens: int = 256
    ) -> None:
        self.safely = Safely("LMCache")
        self.chunk_tokens = chunk_tokens
        self.index: PrefixIndex | None = self.safely(lambda: PrefixIndex(capacity, policy or policy_from_environment()))
        self._chain: list[int] = []
        self._follows: dict[int, int | None] = {}
        self._keys: dict[int, Any] = {}  # number to key, of the chunks put and not gone
        self._seen = self._begun = 0.0

    def init_mutable_mapping(self) -> MutableMapping[Any, Any]:
        """Return the mapping that LMCache stores chunks in; its order is that of their last use."""
        return OrderedDict()

    def update_on_hit(self, key: Any, cache_dict: MutableMapping[Any, Any]) -> None:
        """Note a use."""
        if isinstance(cache_dict, OrderedDict):
            cache_dict.move_to_end(key)
        self.safely(self._see, key_number(key), False)

    def update_on_put(self, key: Any) -> None:
        """Note a new chunk."""
        self.safely(self._see, key_number(key), True, key)

    def update_on_put_with_metadata(self, key: Any, cache_obj: Any = None, **metadata: Any) -> None:
        """Note a new chunk."""
        self.update_on_put(key)

    def update_cost_observation(self, key: Any, **metadata: Any) -> None:
        """Take no notice: chunks cost alike but for their depth."""

    def should_admit(self, key: Any, cache_dict: MutableMapping[Any, Any]) -> bool:
        """Admit everything: what is new ranks as the newest until its request ends."""
        return True

    def update_on_force_evict(self, key: Any) -> None:
        """Note that a chunk is gone."""
        self.safely(self._drop, key_number(key))

    def get_evict_candidates(self, cache_dict: MutableMapping[Any, Any], num_candidates: int = 1) -> list[Any]:
        """Return chunks to evict: those that LMCache may evict, lowest rank first."""
        chosen: list[Any] | None = self.safely(self._choose, cache_dict, num_candidates)
        return self._oldest(cache_dict, num_candidates) if chosen is None else chosen

    def _see(self, number: int, stored: bool, key: Any = None) -> None:
        assert self.index is not None
        now = time.monotonic()
        last = self._chain[-1] if self._chain else None
        if number in self._follows:
            follows = self._follows[number] == last
        else:
            follows = last is not None
        if self._chain and (now - self._seen > PAUSE or not follows):
            self._flush()
            last = None
        if not self._chain:
            self._begun = now
        self._follows.setdefault(number, last)
        self._chain.append(number)
        self._seen = now
        if stored:
            self._keys[number] = key
            self.index.put(number, self._follows[number])

    def _flush(self) -> None:
        assert self.index is not None
        chain, self._chain = self._chain, []
        tokens = (len(chain) * self.chunk_tokens, 0)
        self.index.used(chain, len(chain), tokens, times=(self._begun, self._seen))
        if len(self._follows) > 16 * self.index.pool.capacity[0]:
            self._follows.clear()

    def _drop(self, number: int) -> None:
        assert self.index is not None
        self.index.drop(number)
        self._follows.pop(number, None)
        self._keys.pop(number, None)

    def _choose(self, held: MutableMapping[Any, Any], count: int) -> list[Any]:
        assert self.index is not None
        if self._chain:
            self._flush()
        keys = self._keys
        numbers = self.index.pop_some(count, lambda n: n in keys and keys[n] in held and _free(held[keys[n]]))
        chosen = [keys[number] for number in numbers]
        for number in reversed(numbers):
            self.index.put(number)  # until LMCache says that it is gone
        if len(chosen) < count:  # chunks that the index does not hold, and inner ones whose descendants are in use
            taken = set(chosen)
            chosen += [key for key in self._oldest(held, 0) if key not in taken][: count - len(chosen)]
        return chosen

    @staticmethod
    def _oldest(held: MutableMapping[Any, Any], count: int) -> list[Any]:
        """Return the ``count`` free chunks used longest ago, 0 for all."""
        free = (key for key, value in held.items() if _free(value))
        return list(islice(free, count or None))


def _free(value: Any) -> bool:
    return bool(getattr(value, "can_evict", True))


def install() -> None:
    """Put the policy into LMCache under the name ``kvpredict``."""

    def add() -> None:
        names = engine_module("lmcache.v1.storage_backend.cache_policy").POLICY_MAPPING
        names["kvpredict"] = KvpredictCachePolicy

    install_into("lmcache", add)
