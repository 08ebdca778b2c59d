"""What adapters meet in engines that are not installed here: the calls of their published interfaces.

Written from vLLM 0.32 and 0.33 (``v1/kv_offload/cpu/policies/base.py``), SGLang 0.5 (``mem_cache/evict_policy.py``) and
LMCache 0.5 (``cache_policy/base_policy.py``): names and order of arguments, and what the callers do between the calls.
"""

from collections.abc import Callable
from typing import Any


class Chunk:
    """A chunk slot of vLLM's tier: in transfer below 0, in use above, else evictable."""

    def __init__(self, slot_id: int) -> None:
        self.ref_cnt, self.slot_id = -1, slot_id


class Context:
    """vLLM's ``ReqContext``, as far as policies see it."""

    def __init__(self, req_id: str, kv_transfer_params: dict[str, Any] | None = None) -> None:
        self.req_id, self.kv_transfer_params = req_id, kv_transfer_params


class OffloadManager:
    """What ``CPUOffloadingManager`` does with its policy for each request; version ``touch`` is the oldest."""

    def __init__(self, capacity: int, make: Callable[[int], Any], version: str) -> None:
        self.policy, self.capacity, self.version = make(capacity), capacity, version
        self.used = 0

    def serve(self, keys: list[Any], request: str, hints: dict[str, Any] | None = None) -> int:
        """Return how many leading keys were held; then store the rest, as far as there is room."""
        context = Context(request, hints)
        hits = 0
        while hits < len(keys) and (held := self.policy.get(keys[hits])) is not None and held.ref_cnt >= 0:
            hits += 1
        for key in keys[:hits]:  # prepare_load
            self.policy.get(key).ref_cnt += 1
        if self.version == "0.33":
            self.policy.on_request_access(keys, context)
        elif self.version == "touch":
            self.policy.touch(keys, context)
        for key in keys[:hits]:  # complete_load
            self.policy.get(key).ref_cnt -= 1
            self.policy.mark_evictable(key)
        missing = [key for key in keys if self.policy.get(key) is None]
        short = len(missing) - (self.capacity - self.used)
        if self.version == "0.32" and missing:
            self.policy.on_store_miss(missing, context)
        if short > 0:  # prepare_store
            arguments = (short, set(keys), context, hits) if self.version == "0.33" else (short, set(keys))
            evicted = self.policy.evict(*arguments)
            if evicted is None:
                missing = []
            else:
                assert len(evicted) == short
                assert not {key for key, _ in evicted} & set(keys)
                self.used -= short
        for key in missing:
            self.policy.insert(key, Chunk(0))
            self.used += 1
        for key in missing:  # complete_store
            self.policy.get(key).ref_cnt = 0
            self.policy.mark_evictable(key)
        assert self.used <= self.capacity
        if self.version == "0.33":
            self.policy.on_request_finished(context)
        elif self.version == "0.32":
            self.policy.on_request_finished([keys], set(missing), set(keys[:hits]), context)
        return hits


class TreeNode:
    """A node of SGLang's radix cache."""

    def __init__(self, tokens: list[int] | None, parent: "TreeNode | None", last_access_time: float) -> None:
        self.key, self.parent, self.last_access_time, self.hit_count = tokens, parent, last_access_time, 0
