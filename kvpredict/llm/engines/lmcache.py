"""LMCache: a ``BaseCachePolicy`` for its storage backends.

``lmcache/v1/storage_backend/cache_policy/base_policy.py`` and what its backends do between the calls. LMCache names
chunks one by one and not by request: a look-up tells of the chunks it found from the last to the first, a store of new
ones in their order. So a chunk belongs to the request in progress if it comes before or after its others, as far as is
known, within ``PAUSE`` seconds of the last; a new chunk follows the one before. Of requests that are stored at once one
may be taken to go on from another.

Most backends do not say which of the chunks that they were offered they took; that shows when they ask again.
``install`` puts the policy into LMCache's ``POLICY_MAPPING``, to be chosen as ``kvpredict``.
"""

from collections import OrderedDict, deque
from collections.abc import MutableMapping
from itertools import islice
from typing import Any

from kvpredict.llm.engines.guard import Safely, engine_module, install_into, policy_from_environment
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
LEAST, SHARE = 64, 8  # a request has no more chunks than the least and this part of the cache
NAME = "KVPREDICT"  # LMCache looks names up in capitals


class KvpredictCachePolicy(_Base):
    """Evicts chunks by a kvpredict prefix policy, and by LRU after an error in it.

    Parameters
    ----------
    policy : str or PrefixPolicy, optional
        Default: what ``$KVPREDICT_PREFIX_POLICY`` names.
    capacity : int, default 65536
        Chunks that LMCache has room for, at most; how many there are shows when it first evicts.
    chunk_tokens : int, default 256
    """

    def __init__(
        self, policy: str | PrefixPolicy | None = None, capacity: int = 65536, chunk_tokens: int = 256
    ) -> None:
        self.safely = Safely("LMCache")
        self.capacity, self.chunk_tokens = capacity, chunk_tokens
        self.index: PrefixIndex | None = self.safely(lambda: PrefixIndex(capacity, policy or policy_from_environment()))
        self._chain: deque[int] = deque()  # of the request in progress, first chunk first
        self._members: set[int] = set()  # of these
        self._above: int | None = None  # what the first of these follows
        self._pinned: int | None = None  # the last of these, which keeps those before it, once something had to go
        self._keys: dict[int, Any] = {}  # number to key, of the chunks held, as far as is known
        self._offered: dict[int, Any] = {}  # of these, those that LMCache may have evicted
        self._gap = 0  # by how many more LMCache held than are known, when these were offered
        self._most = 0  # chunks held at once, when something had to go
        self._longest = LEAST if self.index is None else LEAST + self.index.capacity // SHARE  # chunks of a request
        self._seen = self._begun = 0.0

    def init_mutable_mapping(self) -> MutableMapping[Any, Any]:
        """Return the mapping that LMCache stores chunks in; its order is that of their last use."""
        return OrderedDict()

    def update_on_hit(self, key: Any, cache_dict: MutableMapping[Any, Any]) -> None:
        """Note a use."""
        try:  # noqa: SIM105 - ``suppress`` takes as long as the rest
            cache_dict.move_to_end(key)  # type: ignore[attr-defined]
        except (AttributeError, KeyError):  # another's mapping, or a chunk that has gone meanwhile
            pass
        self.safely(self._hit, key)

    def update_on_put(self, key: Any) -> None:
        """Note a new chunk."""
        self.safely(self._put, key)

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
        self.safely(self._drop, key)

    def get_evict_candidates(self, cache_dict: MutableMapping[Any, Any], num_candidates: int = 1) -> list[Any]:
        """Return chunks to evict: those that LMCache may evict, lowest rank first."""
        if num_candidates < 1:
            return []
        chosen: list[Any] | None = self.safely(self._choose, cache_dict, num_candidates)
        return self._oldest(cache_dict, num_candidates) if chosen is None else chosen

    def _hit(self, key: Any) -> None:
        index = self.index
        assert index is not None
        number = hash(key)
        if number not in self._keys or (self._offered and self._offered.pop(number, None) is not None):
            self._keys[number] = key
            index.put(number)
        now = index.clock()
        if now - self._seen > PAUSE:
            self._flush()
        if number in self._members:  # found before, and read now
            return
        before = index.before(number)
        if number == self._above:
            self._above = before
            self._chain.appendleft(number)
        else:
            if self._chain and before != self._chain[-1]:
                self._flush()
            if not self._chain:
                self._above = before
            self._chain.append(number)
        self._join(number, now)

    def _put(self, key: Any) -> None:
        assert self.index is not None
        number = hash(key)
        self._keys[number] = key
        if self._offered:
            self._offered.pop(number, None)
        now = self.index.clock()
        if now - self._seen > PAUSE:
            self._flush()
        last = self._chain[-1] if self._chain else None
        if number not in self._members:
            if last is not None and self.index.knows(number) and self.index.before(number) != last:
                self._flush()
            self._chain.append(number)
            self._join(number, now)
        self.index.put(number, last, now)

    def _join(self, number: int, now: float) -> None:
        """Note a chunk as one of the request in progress."""
        if not self._members:
            self._begun = now
        self._seen = now
        self._members.add(number)
        if len(self._members) >= self._longest:
            self._flush()

    def _flush(self) -> None:
        """Note that the request in progress has ended."""
        assert self.index is not None
        if not self._chain:
            return
        chain = list(self._chain)
        self._chain.clear()
        self._members.clear()
        self._above = None
        self._pin(None)
        tokens = (len(chain) * self.chunk_tokens, 0)
        self.index.used(chain, len(chain), tokens, times=(self._begun, self._seen))

    def _pin(self, number: int | None) -> None:
        """Keep a chunk and those before it, and no other."""
        assert self.index is not None
        if number != self._pinned:
            if self._pinned is not None:
                self.index.unpin(self._pinned)
            if number is not None:
                self.index.pin(number)
            self._pinned = number

    def _drop(self, key: Any) -> None:
        assert self.index is not None
        number = hash(key)
        self._keys.pop(number, None)
        self._offered.pop(number, None)
        self.index.drop(number)

    def _choose(self, held: MutableMapping[Any, Any], count: int) -> list[Any]:
        assert self.index is not None
        index, keys = self.index, self._keys
        self._settle(held)
        now = index.clock()
        if now - self._seen > PAUSE:
            self._flush()
        if self._chain:  # the request in progress keeps its chunks while others can go
            self._pin(self._chain[-1])
        strays: set[int] = set()

        def usable(number: int) -> bool:
            chunk = held.get(keys[number])
            if chunk is None:
                strays.add(number)
                return False
            return bool(getattr(chunk, "can_evict", True))

        offered = self._offered
        for number in index.pop_some(count, usable, now):
            offered[number] = keys[number]
        if len(offered) < count:
            self._pin(None)
            for number in index.pop_some(count - len(offered), usable, now):
                offered[number] = keys[number]
        for number in strays:  # gone without a word, or not written yet
            del keys[number]
            index.drop(number)
        if len(offered) < count:  # inner chunks whose descendants are in use
            for key in self._oldest(held, 0):
                number = hash(key)
                if number not in offered and len(offered) < count:
                    offered[number] = keys[number] = key
                    index.drop(number)
        self._gap = len(held) - len(keys)
        return list(offered.values())

    def _settle(self, held: MutableMapping[Any, Any]) -> None:
        """Bring the index into line with what LMCache holds."""
        assert self.index is not None
        index, keys = self.index, self._keys
        size, offered = len(held), self._offered
        # Counting spares a look at each. Where another went without a word, one that was kept shows at its next hit.
        all_gone = size - len(keys) == self._gap - len(offered)
        for number, key in offered.items():
            if all_gone or key not in held:
                del keys[number]
            else:  # LMCache has kept it
                index.put(number)
        offered.clear()
        if size - len(keys) > 16 + size // 16:  # chunks that were there before, or that came late
            for key in held:
                number = hash(key)
                if number not in keys:
                    keys[number] = key
                    index.put(number)
        if size > self._most:
            self._most = size
            index.resize(min(self.capacity, size))
            self._longest = LEAST + index.capacity // SHARE

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
        engine_module("lmcache.v1.storage_backend.cache_policy").POLICY_MAPPING[NAME] = KvpredictCachePolicy

    install_into("lmcache", add)
