"""What adapters meet in engines that are not installed here: the calls of their published interfaces.

Written from vLLM 0.32 and 0.33 (``v1/kv_offload/cpu/policies/base.py``, ``v1/core/block_pool.py``), SGLang 0.5.23
(``mem_cache/radix_cache.py``, ``mem_cache/evict_policy.py``) and LMCache 0.5.6 (``cache_policy/base_policy.py``,
``local_cpu_backend.py``): names and order of arguments, and what the callers do between the calls.
"""

import heapq
from array import array
from collections.abc import Callable, Sequence
from types import SimpleNamespace
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


class CacheBlock:
    """vLLM's ``KVCacheBlock``."""

    def __init__(self, block_id: int) -> None:
        self.block_id, self.ref_cnt, self.block_hash = block_id, 0, None
        self.prev_free_block: Any = None
        self.next_free_block: Any = None


class FreeKVCacheBlockQueue:
    """vLLM's queue of free blocks, doubly linked between two that are none."""

    def __init__(self, blocks: list[CacheBlock]) -> None:
        self.fake_free_list_head, self.fake_free_list_tail = CacheBlock(-1), CacheBlock(-1)
        self.fake_free_list_head.next_free_block = self.fake_free_list_tail
        self.fake_free_list_tail.prev_free_block = self.fake_free_list_head
        self.num_free_blocks = 0
        FreeKVCacheBlockQueue.append_n(self, blocks)

    def popleft(self) -> CacheBlock:
        block = self.fake_free_list_head.next_free_block
        FreeKVCacheBlockQueue.remove(self, block)
        return block  # type: ignore[no-any-return]

    def popleft_n(self, n: int) -> list[CacheBlock]:
        return [FreeKVCacheBlockQueue.popleft(self) for _ in range(n)]

    def remove(self, block: CacheBlock) -> None:
        assert block.prev_free_block is not None
        block.prev_free_block.next_free_block = block.next_free_block
        block.next_free_block.prev_free_block = block.prev_free_block
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def append(self, block: CacheBlock) -> None:
        FreeKVCacheBlockQueue.append_n(self, [block])

    def append_n(self, blocks: list[CacheBlock]) -> None:
        for block in blocks:
            last = self.fake_free_list_tail.prev_free_block
            last.next_free_block, block.prev_free_block = block, last
            block.next_free_block, self.fake_free_list_tail.prev_free_block = self.fake_free_list_tail, block
            self.num_free_blocks += 1


def prefix_cache() -> SimpleNamespace:
    """Return vLLM's modules ``block_pool`` and ``kv_cache_manager``, as far as the plugin changes them, for one use."""
    block_pool = SimpleNamespace(FreeKVCacheBlockQueue=FreeKVCacheBlockQueue)

    class BlockPool:
        hash_block_size = 16

        def __init__(self, blocks: int) -> None:
            self.blocks = [CacheBlock(k) for k in range(blocks)]
            self.free_block_queue = block_pool.FreeKVCacheBlockQueue(self.blocks)
            self.cached: dict[Any, dict[int, CacheBlock]] = {}

        def cache_full_blocks(
            self, request: Any, blocks: list[CacheBlock], *, num_cached_blocks: int, num_full_blocks: int,
            block_size: int, kv_cache_group_id: int = 0,
        ) -> None:  # fmt: skip
            for k in range(num_cached_blocks, num_full_blocks):
                blocks[k].block_hash = request.block_hashes[k]
                self.cached.setdefault(request.block_hashes[k], {})[blocks[k].block_id] = blocks[k]

        def get_new_blocks(self, n: int) -> list[CacheBlock]:
            blocks = self.free_block_queue.popleft_n(n)
            for block in blocks:
                assert block.ref_cnt == 0
                block.ref_cnt = 1
                if block.block_hash is not None:
                    held = self.cached[block.block_hash]
                    del held[block.block_id]
                    if not held:
                        del self.cached[block.block_hash]
                    block.block_hash = None
            return blocks  # type: ignore[no-any-return]

    class KVCacheManager:
        kv_cache_config = SimpleNamespace(
            kv_cache_groups=[SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16))]
        )

        def __init__(self, blocks: int) -> None:
            self.block_pool = BlockPool(blocks)
            self.held: dict[str, list[CacheBlock]] = {}

        def begin(self, request: Any) -> int | None:
            """Return how many blocks of a request were found, and give it all; None where there are not as many."""
            pool, found = self.block_pool, []
            for block_hash in request.block_hashes:
                if block_hash not in pool.cached:
                    break
                found.append(next(iter(pool.cached[block_hash].values())))
            more = len(request.block_hashes) - len(found)
            if more > pool.free_block_queue.num_free_blocks - sum(block.ref_cnt == 0 for block in found):
                return None
            for block in found:
                if block.ref_cnt == 0:
                    pool.free_block_queue.remove(block)
                block.ref_cnt += 1
            self.held[request.request_id] = found + pool.get_new_blocks(more)
            return len(found)

        def computed(self, request: Any, first: int) -> None:
            """Note that all blocks of a request from ``first`` on are complete."""
            blocks = self.held[request.request_id]
            if first < len(blocks):
                self.block_pool.cache_full_blocks(
                    request, blocks, num_cached_blocks=first, num_full_blocks=len(blocks), block_size=16
                )

        def free(self, request: Any) -> None:
            free = []
            for block in reversed(self.held.pop(request.request_id)):
                block.ref_cnt -= 1
                if block.ref_cnt == 0:
                    free.append(block)
            self.block_pool.free_block_queue.append_n(free)

    block_pool.BlockPool = BlockPool
    return SimpleNamespace(block_pool=block_pool, manager=SimpleNamespace(KVCacheManager=KVCacheManager))


class RadixKey:
    """A run of tokens in SGLang's tree; of pairs of tokens under EAGLE, where it holds one token more."""

    def __init__(self, token_ids: Sequence[int], extra_key: str | None = None, is_bigram: bool = False) -> None:
        self.token_ids, self.extra_key, self.cache_salt = array("q", token_ids), extra_key, None
        self.is_bigram = is_bigram

    def __len__(self) -> int:
        return len(self.token_ids) - (1 if self.is_bigram and self.token_ids else 0)

    def part(self, low: int, high: int) -> "RadixKey":
        return RadixKey(self.token_ids[low : high + (1 if self.is_bigram else 0)], self.extra_key, self.is_bigram)


class TreeNode:
    """A node of SGLang's radix cache."""

    def __init__(self, key: RadixKey, parent: "TreeNode | None", last_access_time: float) -> None:
        self.key, self.parent, self.last_access_time, self.hit_count = key, parent, last_access_time, 0
        self.children: dict[Any, TreeNode] = {}
        self.lock_ref = 0

    def __lt__(self, other: "TreeNode") -> bool:
        return self.last_access_time < other.last_access_time


class LRUStrategy:
    """SGLang's own."""

    def get_priority(self, node: TreeNode) -> float:
        return node.last_access_time


class RadixCache:
    """SGLang's radix cache over pages of tokens, without the tensors."""

    def __init__(self, size: int, page_size: int = 64) -> None:
        self.token_to_kv_pool_allocator = SimpleNamespace(size=size)
        self.page_size, self.room, self.now = page_size, size, 0.0
        self.eviction_strategy: Any = LRUStrategy()
        self.root_node = TreeNode(RadixKey([]), None, 0.0)
        self.evicted = 0

    def match(self, key: RadixKey) -> tuple[int, TreeNode]:
        """Return how many tokens are held, and the node that they end in, which is split off where need be."""
        node, at, page = self.root_node, 0, self.page_size
        node.last_access_time = self.now
        while (child := node.children.get(tuple(key.token_ids[at : at + page]))) is not None:
            child.last_access_time = self.now
            own, same = child.key.token_ids, 0
            while same < len(child.key) and own[same : same + page] == key.token_ids[at + same : at + same + page]:
                same += page
            node, at = child if same == len(child.key) else self._split(child, same), at + same
            if node is not child:
                break
        return at, node

    def _split(self, child: TreeNode, length: int) -> TreeNode:
        upper = TreeNode(child.key.part(0, length), child.parent, child.last_access_time)
        upper.lock_ref, first = child.lock_ref, tuple(child.key.token_ids[: self.page_size])
        assert child.parent is not None
        child.parent.children[first] = upper
        child.key, child.parent = child.key.part(length, len(child.key)), upper
        upper.children[tuple(child.key.token_ids[: self.page_size])] = child
        return upper

    def lock(self, node: TreeNode | None, by: int) -> None:
        while node is not None:
            node.lock_ref += by
            node = node.parent

    def evict(self, num_tokens: int) -> None:
        leaves, stack = [], [self.root_node]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if not node.children and node.lock_ref == 0 and node.parent is not None:
                leaves.append((self.eviction_strategy.get_priority(node), node))
        heapq.heapify(leaves)
        while num_tokens > 0 and leaves:
            _, node = heapq.heappop(leaves)
            assert node.parent is not None
            del node.parent.children[tuple(node.key.token_ids[: self.page_size])]
            num_tokens, self.room, self.evicted = (
                num_tokens - len(node.key),
                self.room + len(node.key),
                self.evicted + 1,
            )
            if not node.parent.children and node.parent.lock_ref == 0 and node.parent.parent is not None:
                heapq.heappush(leaves, (self.eviction_strategy.get_priority(node.parent), node.parent))

    def checkpoint(self, req: Any, *, up_to: int, **_: Any) -> None:
        """Store a request's tokens, in whole pages."""
        key = RadixKey((req.origin_input_ids + req.output_ids)[:up_to], req.extra_key)
        key = key.part(0, len(key) // self.page_size * self.page_size)
        at, node = self.match(key)
        if at < len(key):
            new = TreeNode(key.part(at, len(key)), node, self.now)
            node.children[tuple(new.key.token_ids[: self.page_size])] = new
            self.room -= len(new.key)

    def serve(self, req: Any, now: float) -> int:
        """Return how many tokens were held; then answer the request, store and release it, as far as there is room."""
        self.now = now
        held, node = self.match(RadixKey(req.origin_input_ids, req.extra_key))
        self.lock(node, 1)
        more = len(req.origin_input_ids) + len(req.output_ids) - held
        if more > self.room:
            self.evict(more - self.room)
        if more <= self.room:
            self.checkpoint(req, up_to=len(req.origin_input_ids))
            req.over = True
            self.checkpoint(req, up_to=len(req.origin_input_ids) + len(req.output_ids))
        self.lock(node, -1)
        return held


class Request:
    """A request of SGLang's."""

    def __init__(
        self, prompt: Sequence[int], output: Sequence[int], custom_params: dict[str, Any] | None = None
    ) -> None:
        self.origin_input_ids, self.output_ids = array("q", prompt), array("q", output)
        self.sampling_params = SimpleNamespace(custom_params=custom_params)
        self.extra_key: str | None = None
        self.over = False

    def finished(self) -> bool:
        return self.over


class ChunkKey:
    """LMCache's ``CacheEngineKey``: its hash is that of six fields."""

    def __init__(self, chunk_hash: int) -> None:
        self.chunk_hash = chunk_hash

    def __hash__(self) -> int:
        return hash(("model", 1, 0, self.chunk_hash, "bfloat16", None))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.chunk_hash == other.chunk_hash  # type: ignore[attr-defined]


class Memory:
    """LMCache's ``MemoryObj``."""

    def __init__(self) -> None:
        self.pins = 0

    @property
    def can_evict(self) -> bool:
        return self.pins == 0


class ChunkBackend:
    """What LMCache's CPU backend does with its policy; ``told`` of what is evicted or not, as earlier versions were."""

    def __init__(self, capacity: int, policy: Any, told: bool = False) -> None:
        self.capacity, self.policy, self.told = capacity, policy, told
        self.hot_cache = policy.init_mutable_mapping()
        self.evicted = 0

    def serve(self, keys: list[Any]) -> int:
        """Return how many keys were found; then store the rest, as far as there is room."""
        found = self.lookup(keys)
        self.store(keys[found:])
        for key in keys[:found]:  # the request is over
            if key in self.hot_cache:
                self.hot_cache[key].pins = 0
        return found

    def lookup(self, keys: list[Any]) -> int:
        """Look a prompt up; the policy hears of the last chunk found first."""
        found = 0
        while found < len(keys) and keys[found] in self.hot_cache:
            self.hot_cache[keys[found]].pins += 1
            found += 1
        for key in reversed(keys[:found]):
            self.policy.update_on_hit(key, self.hot_cache)
        return found

    def store(self, keys: list[Any]) -> int:
        """Make room for all keys, as far as there is some, and then store them; return how many."""
        stored = 0
        while stored < len(keys) and (len(self.hot_cache) + stored < self.capacity or self.evict()):
            stored += 1
        for key in keys[:stored]:
            if key not in self.hot_cache:
                self.hot_cache[key] = Memory()
                self.policy.update_on_put(key)
        return stored

    def evict(self) -> bool:
        victims = self.policy.get_evict_candidates(self.hot_cache, num_candidates=1)
        for key in victims:
            assert self.hot_cache.pop(key).can_evict
            self.evicted += 1
            if self.told:
                self.policy.update_on_force_evict(key)
        return bool(victims)

    def remove(self, key: Any) -> None:
        """Take a chunk out for another reason than room."""
        if self.hot_cache.pop(key, None) is not None:
            self.policy.update_on_force_evict(key)
