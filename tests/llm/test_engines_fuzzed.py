"""Adapters under random calls of their engines, and under calls that no engine should make: they never raise, keep the
same books as the engine, and remember no more than the index can number."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpredict.llm.engines import lmcache, sglang, vllm_prefix
from kvpredict.llm.engines.vllm_offload import KvpredictPolicy
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.simulate import as_prefix_policy as prefix_policy
from tests.llm.published import (
    CacheBlock,
    ChunkBackend,
    ChunkKey,
    Context,
    OffloadManager,
    RadixCache,
    Request,
    prefix_cache,
)
from tests.llm.test_engines import check_chunks, tokens
from tests.llm.test_simulate import check_pool

POLICIES = st.sampled_from(["lru", "lfu", "s3fifo", Learned(every=0.0)])
PROMPTS = st.lists(
    st.integers(0, 3), min_size=1, max_size=6
).map(  # a small tree of prompts
    lambda path: [int("1" + "".join(map(str, path[: k + 1]))) for k in range(len(path))]
)
STEPS = 40


class Offload:
    """vLLM's tier: each rule is a call of its manager's, or one out of order."""

    def __init__(self, policy: Any) -> None:
        self.manager = OffloadManager(8, lambda c: KvpredictPolicy(c, policy), "0.33")
        self.policy = self.manager.policy
        self.rules = [self.serve, self.stop, self.odd, self.forget]

    def serve(self, prompt: list[int], name: int) -> None:
        self.manager.serve(prompt, str(name))

    def stop(self, prompt: list[int], name: int) -> None:
        """A request that begins and is never heard of again, and one that ends without beginning."""
        self.policy.on_store_miss(prompt, Context(f"s{name}", prompt))
        self.policy.on_request_finished((prompt,), set(), set(), Context(f"t{name}", []))
        self.policy.on_request_finished((), None)

    def odd(self, prompt: list[int], name: int) -> None:
        policy, key = self.policy, prompt[-1]
        policy.remove("never inserted")
        policy.touch([key, key, "never seen"])
        policy.touch([])
        policy.on_store_miss([])
        assert id(None) not in policy._open  # calls without a request, which nothing would end
        policy.mark_evictable(key)
        assert policy.evict(0, set()) == []
        assert policy.evict(1, set(policy.blocks)) is None
        assert policy.evict(len(policy.blocks) + 1, set()) is None
        if policy.get(key) is not None:  # stored again
            policy.insert(key, policy.get(key))

    def forget(self, prompt: list[int], name: int) -> None:
        for key in prompt[name % 3 :]:
            if self.policy.get(key) is not None:
                self.policy.remove(key)
                self.manager.used -= 1
        if name == 0:
            self.policy.clear()
            self.manager.used = 0

    def check(self) -> None:
        policy = self.policy
        assert sorted(map(hash, policy.blocks)) == sorted(policy.index.held()) == sorted(policy._keys)
        assert policy._held == sum(len(request.blocks) for request in policy._open.values())
        assert self.manager.used == len(policy.blocks)


class Chunks:
    """LMCache's backend."""

    def __init__(self, policy: Any) -> None:
        self.policy = lmcache.KvpredictCachePolicy(policy, capacity=64)
        self.now = 0.0
        self.policy.index.clock = lambda: self.now
        self.backend = ChunkBackend(8, self.policy)
        self.rules = [self.serve, self.together, self.odd, self.forget]

    def serve(self, prompt: list[int], name: int) -> None:
        self.now += name * 0.3
        self.backend.serve(list(map(ChunkKey, prompt)))

    def together(self, prompt: list[int], name: int) -> None:
        """Two requests at once, one of which is given up."""
        a, b = list(map(ChunkKey, prompt)), list(map(ChunkKey, prompt[:1] + prompt[2:]))
        found, _ = self.backend.lookup(a), self.backend.lookup(b)
        self.backend.store(a[found:])
        for memory in self.backend.hot_cache.values():
            memory.pins = 0

    def odd(self, prompt: list[int], name: int) -> None:
        policy, held, key = self.policy, self.backend.hot_cache, ChunkKey(prompt[-1])
        policy.update_on_force_evict(ChunkKey(-1))
        assert policy.get_evict_candidates(held, -1) == []
        offered = policy.get_evict_candidates(held, 1 + name)  # none of which is taken
        assert len(offered) == len(set(offered)) == min(1 + name, len(held))
        if key in held:
            policy.update_on_put(key)  # stored again
        policy.update_on_put_with_metadata(ChunkKey(-2), None, size=1)  # never written
        policy.update_on_hit(ChunkKey(-3), {})
        for lost in (-2, -3):
            policy.update_on_force_evict(ChunkKey(lost))
        policy.update_cost_observation(key)

    def forget(self, prompt: list[int], name: int) -> None:
        for chunk in prompt[name % 3 :]:
            self.backend.remove(ChunkKey(chunk))
        if name == 0:
            while self.backend.evict():
                pass

    def check(self) -> None:
        assert len(self.backend.hot_cache) <= self.backend.capacity
        if not self.policy._offered or self.backend.hot_cache:
            check_chunks(self.backend)


class Radix:
    """SGLang's cache."""

    def __init__(self, policy: Any) -> None:
        class Cache(RadixCache): ...

        sglang._install(Cache)
        self.cache = Cache(8 * 64, page_size=32)
        self.policy = self.cache.eviction_strategy = self.cache.kvpredict_strategy = sglang.KvpredictStrategy(policy, 8)
        self.now = 0.0
        self.rules = [self.serve, self.odd]

    def serve(self, prompt: list[int], name: int) -> None:
        self.now += 1.0
        request = Request(tokens(*prompt, size=32 + 16 * (name % 3)), tokens(-name, size=40))
        request.extra_key = "adapter" if name == 4 else None
        self.cache.serve(request, self.now)

    def odd(self, prompt: list[int], name: int) -> None:
        self.policy.observe([], 0)
        self.policy.observe(tokens(*prompt), 10**6, "no mapping")
        self.policy.ended(Request([], []))
        for params in ({"kvpredict": {"session": "a"}}, {"kvpredict": []}, {"other": 1}):
            request = Request(tokens(*prompt), [], params)
            request.over = True
            self.policy.ended(request)
        if name == 0:
            self.cache.evict(10**6)
            assert not self.cache.root_node.children

    def check(self) -> None:
        nodes, stack = [], [self.cache.root_node]
        while stack:
            nodes.append(stack.pop())
            stack += nodes[-1].children.values()
        assert self.cache.room == 8 * 64 - sum(len(node.key) for node in nodes)
        assert all(self.policy.get_priority(node)[0] in (0, 1) for node in nodes)


class Blocks:
    """vLLM's own prefix cache."""

    def __init__(self, policy: Any) -> None:
        vllm = prefix_cache()
        vllm_prefix._install(vllm.block_pool, vllm.manager)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vllm_prefix, "policy_from_environment", lambda: prefix_policy(policy))
            self.manager = vllm.manager.KVCacheManager(8)
        self.pool = self.manager.block_pool
        self.policy = self.pool.free_block_queue.books
        self.open: dict[str, Any] = {}
        self.rules = [self.begin, self.end, self.preempt, self.odd]

    def begin(self, prompt: list[int], name: int) -> None:
        if str(name) in self.open:
            self.end(prompt, name)
        request = SimpleNamespace(request_id=str(name), block_hashes=[b"%16d" % block for block in prompt])
        request.is_finished = lambda: request.over
        request.over, request.found = False, self.manager.begin(request)
        if request.found is not None:
            self.open[str(name)] = request

    def end(self, prompt: list[int], name: int) -> None:
        request = self.open.pop(str(name), None)
        if request is not None:
            self.manager.computed(request, request.found)
            request.over = True
            self.manager.free(request)

    def preempt(self, prompt: list[int], name: int) -> None:
        request = self.open.pop(str(name), None)
        if request is not None:
            self.manager.computed(request, request.found)
            self.manager.free(request)
            request.over = True
            self.policy.ended(request, 16)  # it never comes back

    def odd(self, prompt: list[int], name: int) -> None:
        stranger = CacheBlock(99)
        self.policy.freed([stranger])
        self.policy.forget(stranger)
        self.policy.ended(SimpleNamespace(request_id="stranger"), 16)

    def check(self) -> None:
        books, pool = self.policy, self.pool
        assert books.following.works
        assert set(books.requests) <= set(self.open)
        assert {number: block.block_id for number, block in books.by_number.items()} == {
            number: k for k, number in books.number.items()
        }
        assert sorted(books.index.held()) == sorted(books.by_number)
        assert {hash(h) for h in pool.cached} >= set(books.by_number)
        for number, block in books.by_number.items():
            assert hash(block.block_hash) == number
            assert (books.index.pool.running[books.index.node(number)] > 0) == (number in books.passed)
            assert number not in books.passed or block.ref_cnt > 0
        assert books.passed <= set(books.by_number)
        assert pool.free_block_queue.num_free_blocks == sum(block.ref_cnt == 0 for block in pool.blocks)


@pytest.mark.parametrize("engine", [Offload, Blocks, Chunks, Radix])
@settings(max_examples=60, deadline=None)
@given(
    policy=POLICIES,
    steps=st.lists(st.tuples(st.integers(0, 3), PROMPTS, st.integers(0, 4)), max_size=STEPS),
)
def test_random_calls_of_an_engine_leave_books_that_agree(
    engine: Callable[[Any], Any], policy: Any, steps: list[tuple[int, list[int], int]]
) -> None:
    host = engine(policy)
    for which, prompt, name in steps:
        host.rules[which % len(host.rules)](prompt, name)
        host.check()
        assert host.policy.safely.works
    index = host.policy.index
    check_pool(index.pool, index.policy.traits.heaps, stored_by_engine=True)
    assert len(index._node) + len(index._free) == len(index.hash)
