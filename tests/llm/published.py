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
    """vLLM's ``ReqContext``, as far as policies see it; the scheduler enters a request's keys with their ends."""

    def __init__(self, req_id: str, keys: list[Any], kv_transfer_params: dict[str, Any] | None = None) -> None:
        self.req_id, self.kv_transfer_params = req_id, kv_transfer_params
        self._offload_key_positions = {key: 16 * (k + 1) for k, key in enumerate(keys)}

    def get_offload_key_position(self, key: Any) -> int | None:
        return self._offload_key_positions.get(key)


class OffloadManager:
    """What scheduler and ``CPUOffloadingManager`` do with their policy for each request, in version 0.32 or 0.33."""

    def __init__(self, capacity: int, make: Callable[[int], Any], version: str) -> None:
        self.policy, self.capacity, self.later = make(capacity), capacity, version == "0.33"
        self.used = 0

    def serve(self, keys: list[Any], request: str, hints: dict[str, Any] | None = None, on_gpu: int = 0) -> int:
        """Return how many keys after those on the GPU were held; then store the rest, as far as there is room."""
        policy, context = self.policy, Context(request, keys, hints)
        end = on_gpu
        while end < len(keys) and (held := policy.get(keys[end])) is not None and held.ref_cnt >= 0:
            end += 1
        loaded = keys[on_gpu:end]
        for key in loaded:  # prepare_load
            policy.mark_non_evictable(key)
            policy.get(key).ref_cnt += 1
        if loaded and self.later:
            policy.on_request_access(loaded, context)
        for key in loaded:  # complete_load
            policy.get(key).ref_cnt -= 1
            policy.mark_evictable(key)
        offered = keys[end:] if loaded else keys  # what is loaded, and all before it, is not offered again
        found = [key for key in offered if policy.get(key) is not None]
        missing = [key for key in offered if policy.get(key) is None]
        if missing:  # prepare_store
            policy.on_store_miss(missing, context)
        if offered and self.later:
            policy.on_request_access(offered, context)
        short = len(missing) - (self.capacity - self.used)
        if short > 0:
            evicted = policy.evict(short, set(offered))
            if evicted is None:
                missing = []
            else:
                assert len(evicted) == short
                assert not {key for key, _ in evicted} & set(offered)
                self.used -= short
        for key in missing:
            policy.insert(key, Chunk(0), *([context] if self.later else []))
            self.used += 1
        for key in missing:  # complete_store
            policy.get(key).ref_cnt = 0
            policy.mark_evictable(key)
        assert self.used <= self.capacity
        policy.on_request_finished(((*loaded, *offered),), set(missing), {*loaded, *found}, context)
        return len(loaded)


class TreeNode:
    """A node of SGLang's radix cache."""

    def __init__(self, tokens: list[int] | None, parent: "TreeNode | None", last_access_time: float) -> None:
        self.key, self.parent, self.last_access_time, self.hit_count = tokens, parent, last_access_time, 0
