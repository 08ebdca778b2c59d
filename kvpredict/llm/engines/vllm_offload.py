"""vLLM's CPU offload tier: ``KvpredictPolicy`` is a ``CachePolicy`` for ``CPUOffloadingManager``.

vLLM 0.32 and 0.33, ``vllm/v1/kv_offload/cpu/policies/base.py``. Versions differ in what they call, so extra arguments
are taken and optional hooks stand by: ``evict(n, protected)`` with or without the request and the number of resident
blocks; ``on_store_miss``, ``on_request_access``, ``on_request_finished`` with the request alone or with its keys before
it. vLLM names the keys of a request in the order of its prompt; that is where the adapter learns which block follows
which.

Select it with ``--kv-transfer-config`` by ``"eviction_policy": "KvpredictPolicy"`` and ``"cache_policy_module_path":
"kvpredict.llm.engines.vllm_offload"``; ``$KVPREDICT_PREFIX_POLICY`` names the policy.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from kvpredict.llm.engines.guard import Safely, key_number, lenient_hints, policy_from_environment
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

try:
    from vllm.v1.kv_offload.cpu.policies.base import CachePolicy as _Base
except ImportError:  # the class is used and tested without vLLM too
    _Base = object

__all__ = ["KvpredictPolicy"]

OPEN = 128  # requests whose end has not been told


class KvpredictPolicy(_Base):
    """Evicts by a kvpredict prefix policy, and by LRU after an error in it.

    Parameters
    ----------
    cache_capacity : int
        Blocks (chunks) of the tier.
    policy : str or PrefixPolicy, optional
        Default: what ``$KVPREDICT_PREFIX_POLICY`` names.
    """

    def __init__(self, cache_capacity: int, policy: str | PrefixPolicy | None = None, *_: Any, **__: Any) -> None:
        self.cache_capacity = cache_capacity
        self.blocks: OrderedDict[Any, Any] = OrderedDict()  # in LRU order
        self.safely = Safely("vLLM offload tier")
        self.tokens_per_block = 16
        self._open: OrderedDict[Any, dict[Any, int]] = OrderedDict()  # request to its keys, in order
        self._begun: dict[Any, float] = {}
        self._hints: dict[Any, tuple[dict[str, float], int | None]] = {}
        self._keys: dict[int, Any] = {}  # number to key, of all that the index holds
        self._last: Any = None  # the key after which the next one stored comes
        self.index: PrefixIndex | None = self.safely(self._make, policy)

    def _make(self, policy: str | PrefixPolicy | None) -> PrefixIndex:
        return PrefixIndex(self.cache_capacity, policy or policy_from_environment())

    # What vLLM calls

    def get(self, key: Any) -> Any:
        return self.blocks.get(key)

    def insert(self, key: Any, block: Any) -> None:
        self.blocks[key] = block
        self.safely(self._put, key)

    def remove(self, key: Any) -> None:
        self.blocks.pop(key, None)
        self.safely(self._drop, key)

    def touch(self, keys: Iterable[Any], req_context: Any = None) -> None:
        keys = list(keys)
        for key in reversed(keys):  # of one request the first block is the newest
            if key in self.blocks:
                self.blocks.move_to_end(key)
        self.safely(self._note, keys, req_context)

    def evict(self, n: int, protected: Any, *_: Any, **__: Any) -> list[tuple[Any, Any]] | None:
        chosen = self.safely(self._choose, n, protected) or self._oldest(n, protected)
        if chosen is None:
            return None
        evicted = [(key, self.blocks.pop(key)) for key in chosen]
        for key in chosen:
            self.safely(self._drop, key)
        return evicted

    def clear(self) -> None:
        for key in list(self.blocks):
            self.safely(self._drop, key)
        self.blocks.clear()
        self._open.clear()
        self._begun.clear()
        self._hints.clear()
        self._last = None

    def mark_evictable(self, key: Any) -> None:
        """Nothing to note: ``ref_cnt`` is read when something must go."""

    def mark_non_evictable(self, key: Any) -> None:
        """Nothing to note."""

    def on_store_miss(self, keys: Any, req_context: Any = None) -> None:
        """Note which keys are about to be stored, and in which order."""
        self.safely(self._note, list(keys), req_context)

    def on_request_access(self, keys: Iterable[Any], req_context: Any = None) -> None:
        self.touch(keys, req_context)

    def on_request_finished(self, *arguments: Any, **named: Any) -> None:
        """Take ``(request,)`` or ``(key_groups, inserted, reused, request)``."""
        context = named.get("req_context", arguments[-1] if arguments else None)
        groups = named.get("key_groups", arguments[0] if len(arguments) > 1 else ())
        self.safely(self._ended, groups, context)

    # What the policy is told

    def _put(self, key: Any) -> None:
        assert self.index is not None
        parent = None if self._last is None or self._last == key else key_number(self._last)
        number = key_number(key)
        self._keys[number] = key
        self.index.put(number, parent)
        self._last = key

    def _drop(self, key: Any) -> None:
        assert self.index is not None
        number = key_number(key)
        self._keys.pop(number, None)
        self.index.drop(number)

    def _note(self, keys: list[Any], context: Any) -> None:
        request = _request(context)
        chain = self._open.setdefault(request, {})
        self._begun.setdefault(request, time.monotonic())
        for key in keys:
            chain.setdefault(key, len(chain))
        if keys:
            self._last = keys[-1]
        said = getattr(context, "kv_transfer_params", None)
        if said:
            self._hints[request] = lenient_hints(said)
        while len(self._open) > OPEN:
            self._finish(next(iter(self._open)))

    def _ended(self, groups: Iterable[Iterable[Any]], context: Any) -> None:
        for keys in groups:  # the whole request, first block first
            chain = list(keys)
            for key in reversed(chain):
                if key in self.blocks:
                    self.blocks.move_to_end(key)
            self._note(chain, context)
        self._finish(_request(context))

    def _finish(self, request: Any) -> None:
        assert self.index is not None
        chain = self._open.pop(request, None)
        begun, (hints, session) = self._begun.pop(request, None), self._hints.pop(request, ({}, None))
        if chain:
            blocks = [key_number(key) for key in chain]
            tokens = (len(blocks) * self.tokens_per_block, 0)
            self.index.used(blocks, len(blocks), tokens, session=session, hints=hints, times=(begun, time.monotonic()))

    def _choose(self, n: int, protected: Any) -> list[Any] | None:
        """Return ``n`` keys, lowest rank first; None, and nothing changed, where there are not as many."""
        index, keys = self.index, self._keys
        assert index is not None

        def usable(number: int) -> bool:
            return keys[number] not in protected and _unused(self.blocks[keys[number]])

        numbers = index.pop_some(n, usable)
        chosen = [keys[number] for number in numbers]
        for number in reversed(numbers):
            index.put(number)  # until ``evict`` takes it out for good
        if len(chosen) < n:  # inner blocks whose descendants are in use
            taken = set(chosen)
            rest = [key for key in self._oldest(0, protected) or () if key not in taken]
            if len(chosen) + len(rest) < n:
                return None
            rest.sort(key=lambda key: index.rank(key_number(key)) or 0.0)
            chosen += rest[: n - len(chosen)]
        return chosen

    def _oldest(self, n: int, protected: Any) -> list[Any] | None:
        """Return the ``n`` keys used longest ago, 0 for all; None where there are not as many."""
        free = [key for key, block in self.blocks.items() if key not in protected and _unused(block)]
        return free[: n or None] if len(free) >= n else None


def _unused(block: Any) -> bool:
    return int(getattr(block, "ref_cnt", 0)) == 0


def _request(context: Any) -> Any:
    return getattr(context, "req_id", None) or getattr(context, "request_id", None) or id(context)
