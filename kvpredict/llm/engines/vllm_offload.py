"""vLLM's CPU offload tier: ``KvpredictPolicy`` is a ``CachePolicy`` for ``CPUOffloadingManager``.

vLLM 0.32 and 0.33, ``vllm/v1/kv_offload/cpu/policies/base.py``. The later one calls ``on_request_access`` too and gives
``insert`` the request; arguments that other versions add are taken and not used. A request's context knows all of its
keys by their place in the prompt. That is where the adapter learns which block follows which, also of blocks that the
tier was not asked for because the GPU held them. Blocks of requests in progress stay while others can go.

Select it with ``--kv-transfer-config`` by ``"eviction_policy": "KvpredictPolicy"`` and ``"cache_policy_module_path":
"kvpredict.llm.engines.vllm_offload"``; ``$KVPREDICT_PREFIX_POLICY`` names the policy.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kvpredict.llm.engines.guard import Safely, lenient_hints, policy_from_environment
from kvpredict.llm.prefix.engine import EXTERN
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

try:
    from vllm.v1.kv_offload.cpu.policies.base import CachePolicy as _Base
except ImportError:  # the class is used and tested without vLLM too
    _Base = object

__all__ = ["KvpredictPolicy"]

OPEN = 4096  # requests in progress
TOKENS = 16  # in a block, where the request does not say


@dataclass
class _Request:
    """A request in progress."""

    ticket: int  # of the index
    blocks: list[int]  # numbers of its keys, first block first
    prompt: int  # how many there were when it began
    tokens: int  # in these


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
        self._open: OrderedDict[Any, _Request] = OrderedDict()
        self._held = 0  # blocks of these
        self._keys: dict[int, Any] = {}  # by hash, which a key remembers: of all that the index holds
        self.index: PrefixIndex | None = self.safely(self._make, policy)

    def _make(self, policy: str | PrefixPolicy | None) -> PrefixIndex:
        return PrefixIndex(self.cache_capacity, policy or policy_from_environment(), requests=OPEN)

    # What vLLM calls

    def get(self, key: Any) -> Any:
        return self.blocks.get(key)

    def insert(self, key: Any, block: Any, *_: Any, **__: Any) -> None:
        self.blocks[key] = block
        self.safely(self._put, key)

    def remove(self, key: Any, *_: Any, **__: Any) -> None:
        self.blocks.pop(key, None)
        self.safely(self._drop, key)

    def touch(self, keys: Iterable[Any], req_context: Any = None, *_: Any, **__: Any) -> None:
        keys = list(keys)
        self._renew(keys)
        self.safely(self._note, keys, req_context)

    def evict(self, n: int, protected: Any, *_: Any, **__: Any) -> list[tuple[Any, Any]] | None:
        if n < 1:
            return []
        oldest = self._oldest(n, protected)
        if len(oldest) < n:  # the policy is not asked: it would take what it is given back for a ghost's return
            return None
        return [(key, self.blocks.pop(key)) for key in self.safely(self._choose, n, protected) or oldest]

    def clear(self) -> None:
        for key in list(self.blocks):
            self.safely(self._drop, key)
        self.blocks.clear()
        self.safely(self._cancel)

    def mark_evictable(self, key: Any) -> None:
        """Nothing to note: ``ref_cnt`` is read when something must go."""

    def mark_non_evictable(self, key: Any) -> None:
        """Nothing to note."""

    def on_store_miss(self, keys: Iterable[Any], req_context: Any = None, *_: Any, **__: Any) -> None:
        """Note which keys are about to be stored, and after which."""
        self.safely(self._note, list(keys), req_context)

    def on_request_access(self, keys: Iterable[Any], req_context: Any = None, *_: Any, **__: Any) -> None:
        self.touch(keys, req_context)

    def on_request_finished(self, key_groups: Iterable[Iterable[Any]], *rest: Any, **named: Any) -> None:
        """Take the keys that the tier was asked for and, in the last place, the request."""
        context = named.get("req_context", rest[-1] if rest else None)
        keys = [key for group in key_groups for key in group]
        self._renew(keys)
        self.safely(self._ended, keys, context)

    # What the policy is told

    def _renew(self, keys: list[Any]) -> None:
        for key in reversed(keys):  # of one request the first block is the newest
            if key in self.blocks:
                self.blocks.move_to_end(key)

    def _put(self, key: Any) -> None:
        assert self.index is not None
        number = hash(key)
        self._keys[number] = key
        self.index.put(number)  # which follows what ``_note`` said

    def _drop(self, key: Any) -> None:
        assert self.index is not None
        number = hash(key)
        self._keys.pop(number, None)
        self.index.drop(number)

    def _note(self, keys: list[Any], context: Any) -> None:
        assert self.index is not None
        if context is None:  # of a request that would never end
            return
        name = _name(context)
        places = getattr(context, "_offload_key_positions", None)  # of all its keys; the public method needs the key
        request = self._open.get(name)
        if places:
            if request is not None and len(places) == len(request.blocks):
                return
            keys = sorted(places, key=places.__getitem__)
        numbers = [hash(key) for key in keys]
        if request is None:
            if not numbers:
                return
            while self._open and not self._room(len(numbers)):
                self._finish(next(iter(self._open)))
            if not self._room(len(numbers)):  # longer than all that the index can number: its blocks come one by one
                return
            hints, session = lenient_hints(getattr(context, "kv_transfer_params", None))
            tokens = places[keys[-1]] if places else TOKENS * len(keys)
            ticket, *_ = self.index.begin(numbers, tokens, session=session, hints=hints, tiers=EXTERN)
            self._open[name] = _Request(ticket, numbers, len(numbers), tokens)
            self._held += len(numbers)
            return
        known = set(request.blocks)
        for number in numbers:  # blocks that generation filled
            if number not in known:
                self.index.node(number, request.blocks[-1])
                request.blocks.append(number)
                self._held += 1

    def _room(self, blocks: int) -> bool:
        """Whether the index can number so many blocks more that may not be forgotten."""
        assert self.index is not None
        return len(self._open) < OPEN and self._held + blocks <= len(self.index.hash) // 2

    def _ended(self, keys: list[Any], context: Any) -> None:
        self._note(keys, context)
        self._finish(_name(context))

    def _finish(self, name: Any) -> None:
        assert self.index is not None
        request = self._open.pop(name, None)
        if request is None:
            return
        self._held -= len(request.blocks)
        generated = request.blocks[request.prompt :]
        tokens = len(generated) * request.tokens // request.prompt
        self.index.end(request.ticket, generated, tokens, tiers=EXTERN)

    def _cancel(self) -> None:
        assert self.index is not None
        for request in self._open.values():
            self.index.cancel(request.ticket)
        self._open.clear()
        self._held = 0

    def _choose(self, n: int, protected: Any) -> list[Any]:
        """Take the ``n`` keys of lowest rank out of the index, of at least as many that may go."""
        index, keys = self.index, self._keys
        assert index is not None

        def usable(number: int) -> bool:
            return keys[number] not in protected and _unused(self.blocks[keys[number]])

        numbers = index.pop_some(n, usable)
        if len(numbers) < n:  # the rest are inner blocks, whose descendants are in use
            taken = {keys[number] for number in numbers}
            rest = [hash(key) for key in self._oldest(len(self.blocks), protected) if key not in taken]
            rest = sorted(rest, key=lambda number: index.rank(number) or 0.0)[: n - len(numbers)]
            for number in rest:
                index.drop(number)
            numbers += rest
        return [keys.pop(number) for number in numbers]

    def _oldest(self, n: int, protected: Any) -> list[Any]:
        """Return the ``n`` keys used longest ago of those that may go, or as many as there are."""
        free = (key for key, block in self.blocks.items() if key not in protected and _unused(block))
        return list(islice(free, n))


def _unused(block: Any) -> bool:
    return int(getattr(block, "ref_cnt", 0)) == 0


def _name(context: Any) -> Any:
    return getattr(context, "req_id", None) or getattr(context, "request_id", None) or id(context)
