"""Engine adapters against their published interfaces; the real engines are tested by ``make test-vllm``."""

import importlib
import logging
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvpredict.core.errors import MissingExtra
from kvpredict.llm.engines import lmcache, sglang, vllm_prefix
from kvpredict.llm.engines.guard import POLICY, lenient_hints, policy_from_environment
from kvpredict.llm.engines.vllm_offload import KvpredictPolicy
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.policies.lfu import LFU
from kvpredict.llm.request_files import read_requests
from tests.llm.published import (
    Chunk,
    ChunkBackend,
    ChunkKey,
    Context,
    FreeKVCacheBlockQueue,
    Memory,
    OffloadManager,
    RadixCache,
    RadixKey,
    Request,
    TreeNode,
    prefix_cache,
)


def scans(rounds: int = 60) -> list[tuple[list[bytes], str]]:
    """Return requests of a few hot conversations, between prompts that come once."""
    out = []
    for r in range(rounds):
        hot = r % 3
        out.append(([b"%d-%d" % (hot, k) for k in range(6)], f"hot{r}"))
        out += [([b"s%d-%d-%d" % (r, s, k) for k in range(4)], f"scan{r}-{s}") for s in range(4)]
    return out


def hit_ratio(manager: OffloadManager) -> float:
    requests = scans()
    return sum(manager.serve(keys, name) for keys, name in requests) / sum(len(keys) for keys, _ in requests)


@pytest.mark.parametrize("version", ["0.32", "0.33"])
def test_vllm_offload_tier_takes_the_policy(version: str) -> None:
    lru, lfu = (OffloadManager(30, lambda c, p=p: KvpredictPolicy(c, p), version) for p in ("lru", "lfu"))
    assert hit_ratio(lfu) > hit_ratio(lru) + 0.1
    for manager in (lru, lfu):
        policy = manager.policy
        assert policy.safely.works
        assert sorted(map(hash, policy.blocks)) == sorted(policy.index.held())
        assert (policy.index.pool.running == 0).all()
        assert not policy._open
        policy.clear()
        assert len(policy.index) == 0


@pytest.mark.parametrize("version", ["0.32", "0.33"])
def test_vllm_eviction_is_atomic_and_respects_what_is_in_use(version: str) -> None:
    manager = OffloadManager(8, lambda c: KvpredictPolicy(c, "lru"), version)
    manager.serve([b"a", b"b", b"c", b"d"], "1")
    manager.serve([b"e", b"f", b"g", b"h"], "2")
    policy = manager.policy
    for key in (b"c", b"d"):
        policy.get(key).ref_cnt = 1
    assert policy.evict(7, set()) is None
    assert policy.evict(5, {b"a", b"b"}) is None
    assert len(policy.blocks) == len(policy.index) == 8
    assert {key for key, _ in policy.evict(6, set())} == {b"a", b"b", b"e", b"f", b"g", b"h"}
    assert sorted(policy.index.held()) == sorted(map(hash, (b"c", b"d")))
    policy.remove(b"c")
    assert policy.get(b"c") is None


@pytest.mark.parametrize("version", ["0.32", "0.33"])
def test_vllm_offload_tier_learns_which_block_follows_which(version: str) -> None:
    manager = OffloadManager(24, lambda c: KvpredictPolicy(c, "lru"), version)
    above: dict[int, int | None] = {}
    for turn in range(1, 6):  # conversations grow by two blocks a turn; the GPU holds what they share
        for talk in range(3):
            keys = [b"shared0", b"shared1", *(b"%d-%d" % (talk, k) for k in range(2 * turn))]
            numbers = [hash(key) for key in keys]
            above |= dict(zip(numbers, [None, *numbers], strict=False))
            manager.serve(keys, f"{turn}-{talk}", on_gpu=2 if (turn, talk) != (1, 0) else 0)
            index = manager.policy.index
            held = list(index.held())
            for number in held:
                node = int(index.pool.parent[index.node(number)])
                assert (int(index.hash[node]) if node >= 0 else None) == above[number]
                assert above[number] is None or above[number] in held  # nothing is stranded
    assert manager.policy.safely.works
    assert index.pool.touches[index.node(hash(b"shared1"))] == 15  # also when the GPU had it


@pytest.mark.parametrize("name", ["arc", "slru", "s3fifo", "gdsf", "workload"])
def test_vllm_offload_tier_that_cannot_free_enough_changes_nothing(name: str) -> None:
    policy = KvpredictPolicy(20, name)
    for r in range(10):
        keys, context = [f"{r}.{k}" for k in range(2)], SimpleNamespace(req_id=str(r), kv_transfer_params=None)
        policy.on_store_miss(keys, context)
        for key in keys:
            policy.insert(key, SimpleNamespace(ref_cnt=int(r < 4)))
        policy.on_request_finished([keys], context)
    assert policy.index is not None
    before = [array.copy() for array in (*policy.index.state, policy.index.pool.order)]
    assert policy.evict(13, set()) is None
    assert policy.evict(12, {"9.0"}) is None
    after = (*policy.index.state, policy.index.pool.order)
    assert all((now == then).all() for now, then in zip(after, before, strict=True))
    victims = policy.evict(12, set())
    assert victims is not None
    assert {key for key, _ in victims} == {f"{r}.{k}" for r in range(4, 10) for k in range(2)}
    assert policy.safely.failures == 0


def test_vllm_offload_tier_that_is_small_for_what_runs_outlives_it() -> None:
    policy = KvpredictPolicy(2, "lru")
    contexts = [Context(str(r), [b"%d-%d" % (r, k) for k in range(100)]) for r in range(40)]
    for context in contexts:  # 4,000 blocks in progress, of which the index can number half as many
        policy.on_store_miss(list(context._offload_key_positions)[:2], context)
    for context in contexts:
        policy.on_request_finished((), set(), set(), context)
    policy.on_request_finished((), set(), set(), Context("short", []))
    assert policy.safely.works
    assert not policy._open
    assert (policy.index.pool.running == 0).all()


def test_vllm_offload_tier_outlives_a_request_that_is_longer_than_its_index() -> None:
    policy = KvpredictPolicy(4, "lru")
    long = Context("long", [b"%d" % k for k in range(len(policy.index.hash))])
    policy.on_store_miss(list(long._offload_key_positions)[:4], long)
    for key in list(long._offload_key_positions)[:4]:
        policy.insert(key, Chunk(0))
        policy.get(key).ref_cnt = 0
    policy.on_request_finished((), set(), set(), long)
    assert policy.evict(0, set()) == []
    assert len(policy.evict(3, set())) == 3
    assert len(policy.blocks) == 1
    assert policy.safely.works


class Broken(LFU):
    name = "broken"

    def state(self, nodes: int, capacity: int, requests: int) -> Any:
        raise RuntimeError("this policy is broken")


@pytest.mark.parametrize("when", ["start", "later"])
def test_an_error_in_the_policy_falls_back_to_lru_once_logged_and_counted(
    when: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("this policy is broken")

    with caplog.at_level(logging.ERROR, "kvpredict.llm"):
        manager = OffloadManager(30, lambda c: KvpredictPolicy(c, Broken() if when == "start" else "lfu"), "0.33")
        if when == "later":
            manager.serve([b"x", b"y"], "first")
            monkeypatch.setattr(PrefixIndex, "pop_some", failing)
        broken = hit_ratio(manager)
    assert manager.policy.safely.failures == 1
    assert sum("plain LRU decides" in record.message for record in caplog.records) == 1
    monkeypatch.undo()
    assert broken == pytest.approx(hit_ratio(OffloadManager(30, lambda c: KvpredictPolicy(c, "lru"), "0.33")), abs=0.02)


def test_vllm_hints_reach_the_policy() -> None:
    manager = OffloadManager(8, lambda c: KvpredictPolicy(c, "lru"), "0.33")
    manager.serve([b"a", b"b"], "1", {"kvpredict": {"priority": 1.0}})
    for k in range(10):
        manager.serve([b"s%d" % k, b"t%d" % k], f"scan{k}")
    assert manager.policy.get(b"a") is not None
    assert manager.policy.get(b"b") is not None
    manager.serve([b"q"], "bad", {"kvpredict": {"prioriti": 1.0}})  # a client's mistake must not end the policy
    assert manager.policy.safely.works


def tokens(*names: int, size: int = 64) -> list[int]:
    """Return blocks of tokens, each all of one name."""
    return [name for name in names for _ in range(size)]


def radix_scans() -> list[Request]:
    return [
        Request(tokens(*(hash(key) % 2**31 for key in keys[:-1])), tokens(hash(keys[-1]) % 2**31))
        for keys, _ in scans()
    ]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type[RadixCache]]:
    """Return what makes SGLang's cache with the plugin in it."""

    def make(policy: str) -> type[RadixCache]:
        class Cache(RadixCache): ...

        monkeypatch.setenv(POLICY, policy)
        sglang._install(Cache)
        sglang._install(Cache)  # once
        return Cache

    return make


def test_sglang_priorities_rank_leaves() -> None:
    strategy = sglang.KvpredictStrategy("lfu", capacity=64, block_size=4)
    rng = np.random.default_rng(0)
    hot, cold = (rng.integers(0, 100, 12).tolist() for _ in range(2))
    for _ in range(3):
        strategy.observe(hot, 8)
    strategy.observe(cold, 8, {"continues": 0.2})
    root = TreeNode(RadixKey([]), None, 0.0)
    start = TreeNode(RadixKey(hot[:4]), root, 1.0)
    nodes = [
        TreeNode(RadixKey(hot[4:]), start, 1.0),
        TreeNode(RadixKey(cold), root, 9.0),
        TreeNode(RadixKey([5, 5, 5, 5]), root, 99.0),
    ]
    often, once, unknown = (strategy.get_priority(node) for node in nodes)
    assert unknown < once < often
    assert strategy.get_priority(TreeNode(RadixKey([1]), root, 3.0)) == (0, 3.0)  # shorter than a block
    assert strategy.get_priority(root) == (0, 0.0)
    strategy.index = None
    assert strategy.get_priority(nodes[0]) == (0, 1.0)  # SGLang's LRU
    assert strategy.safely.failures == 1


def test_sglang_nodes_are_known_by_all_their_tokens_however_they_are_cut() -> None:
    strategy = sglang.KvpredictStrategy("lru", capacity=64, block_size=4)
    strategy.observe(range(14), 14)
    root, whole = TreeNode(RadixKey([]), None, 0.0), range(14)
    leaf = TreeNode(RadixKey(whole), root, 0.0)
    third = strategy.get_priority(leaf)
    assert third[0] == 1
    upper = TreeNode(RadixKey(whole[:6]), root, 0.0)  # SGLang splits: the old node keeps the tokens after
    leaf.key, leaf.parent = RadixKey(whole[6:]), upper
    assert strategy.get_priority(leaf) == third
    assert strategy.get_priority(upper) != third
    leaf.key = RadixKey(whole[6:9])  # or those before
    assert strategy.get_priority(leaf) not in (third, strategy.get_priority(upper))
    assert strategy.get_priority(TreeNode(RadixKey(whole[9:]), leaf, 0.0)) == third
    pairs = TreeNode(RadixKey(whole[:9], is_bigram=True), root, 0.0)  # eight pairs
    assert strategy.get_priority(TreeNode(RadixKey(whole[8:13], is_bigram=True), pairs, 0.0)) == third
    other = TreeNode(RadixKey(whole, extra_key="adapter"), root, 0.0)
    assert strategy.get_priority(other)[0] == 0


def test_sglang_plugin_replaces_the_strategy_and_listens(plugin: Callable[[str], type[RadixCache]]) -> None:
    cache = plugin("lfu")(6400)
    strategy = cache.eviction_strategy
    assert isinstance(strategy, sglang.KvpredictStrategy)
    assert strategy.index.capacity == 100  # blocks of 64 tokens
    request = Request(range(128), range(64), {"kvpredict": {"priority": 1.0}})
    cache.checkpoint(request, up_to=128)  # on the way
    assert int(strategy.index.pool.tally[0]) == 0
    cache.serve(request, now=1.0)
    assert int(strategy.index.pool.tally[0]) == 3  # blocks used once
    assert strategy.index.pool.priority.max() == 1.0
    cache.checkpoint(object.__new__(Odd), up_to=0)
    assert strategy.safely.failures == 1  # a request that is not as expected


class Odd:
    origin_input_ids = output_ids = array("q")
    extra_key = None

    def finished(self) -> bool:
        raise RuntimeError("unlike what was published")


def test_sglang_earlier_versions_tell_of_requests_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cache:
        def __init__(self, policy: str) -> None:
            self.eviction_strategy = policy

        def cache_finished_req(self, req: Any, is_insert: bool = True) -> str:
            return f"inserted {is_insert}"

    class Past:
        origin_input_ids, output_ids, sampling_params = list(range(128)), list(range(64)), None

    monkeypatch.setenv(POLICY, "lfu")
    sglang._install(Cache)
    cache = Cache("lru")
    assert cache.cache_finished_req(Past(), is_insert=False) == "inserted False"
    assert isinstance(cache.eviction_strategy, sglang.KvpredictStrategy)
    assert int(cache.eviction_strategy.index.pool.tally[0]) == 3
    assert cache.eviction_strategy.index.capacity == 65536  # the default, where the cache does not say


def test_sglang_trees_of_another_language_keep_their_policy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Unified:
        def __init__(self, tree: Any) -> None:
            self.tree_core = tree

        def checkpoint(self, req: Any, *, up_to: int) -> int:
            return up_to

    monkeypatch.setenv(POLICY, "lfu")
    sglang._install(Unified)
    python, rust = SimpleNamespace(eviction_strategy="lru"), SimpleNamespace()
    assert Unified(python).checkpoint(Request(tokens(1, 2), []), up_to=7) == 7
    assert isinstance(python.eviction_strategy, sglang.KvpredictStrategy)
    assert not caplog.records
    assert Unified(rust).checkpoint(Request(tokens(1, 2), []), up_to=7) == 7
    assert "set SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=python" in caplog.text


@pytest.mark.parametrize("tree", [None, "rust"])
@pytest.mark.parametrize("unified", [True, False])
def test_sglang_plugin_goes_into_both_caches(tree: str | None, unified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unified(RadixCache): ...

    class Cache(RadixCache): ...

    def module(name: str) -> Any:
        if name.endswith("unified_radix_cache") and not unified:
            raise MissingExtra("an earlier version")
        return SimpleNamespace(RadixCache=Cache, UnifiedRadixCache=Unified)

    monkeypatch.setenv(POLICY, "lru")
    monkeypatch.setenv(sglang.TREE, tree or "")
    if tree is None:
        monkeypatch.delenv(sglang.TREE)
    monkeypatch.setattr(sglang, "engine_module", module)
    sglang.register()
    assert isinstance(Cache(640).eviction_strategy, sglang.KvpredictStrategy)
    assert isinstance(Unified(640).eviction_strategy, sglang.KvpredictStrategy) == unified
    assert os.environ.get(sglang.TREE) == (tree or ("python" if unified else None))


def test_sglang_evicts_what_is_worth_least(plugin: Callable[[str], type[RadixCache]]) -> None:
    def hits(cache: RadixCache) -> int:
        return sum(cache.serve(request, float(now)) for now, request in enumerate(radix_scans()))

    stock, lru, lfu = RadixCache(30 * 64), plugin("lru")(30 * 64), plugin("lfu")(30 * 64)
    found = [hits(cache) for cache in (stock, lru, lfu)]
    assert found[1] == pytest.approx(found[0], rel=0.1)
    assert found[2] > 1.2 * found[1]
    assert lru.eviction_strategy.safely.works
    assert lfu.eviction_strategy.safely.works


def chunk_scans(policy: lmcache.KvpredictCachePolicy, told: bool) -> float:
    """Return the share of chunks found; requests are seconds apart."""
    backend, hits, asked, now = ChunkBackend(30, policy, told), 0, 0, 0.0
    policy.index.clock = lambda: now
    for names, _ in scans():
        now += 2.0
        hits += backend.serve([ChunkKey(hash(name)) for name in names])
        asked += len(names)
        check_chunks(backend)
    return hits / asked


def check_chunks(backend: ChunkBackend) -> None:
    """Check that the index holds what LMCache does, but for what it was offered last."""
    policy = backend.policy
    assert policy.safely.works
    offered = {number for number, key in policy._offered.items() if key not in backend.hot_cache}
    assert set(policy._keys) - offered == set(map(hash, backend.hot_cache))
    assert set(policy.index.held()) == set(policy._keys) - set(policy._offered)
    assert sorted(policy._members) == sorted(policy._chain)
    pinned = list(policy.index.pool.running.nonzero()[0])
    assert pinned == ([] if policy._pinned is None else [policy.index.node(policy._pinned)])


@pytest.mark.parametrize("told", [False, True])
def test_lmcache_evicts_what_is_worth_least(told: bool) -> None:
    lru, lfu = (chunk_scans(lmcache.KvpredictCachePolicy(p, capacity=300), told) for p in ("lru", "lfu"))
    assert lfu > lru + 0.1


def test_lmcache_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    monkeypatch.setattr(lmcache, "engine_module", lambda _: SimpleNamespace(POLICY_MAPPING=names))
    lmcache.install()
    monkeypatch.setenv(POLICY, "lru")
    assert isinstance(names["kvpredict".upper()](), lmcache.KvpredictCachePolicy)  # as LMCache looks it up


def test_lmcache_requests_stay_whole_over_look_ups_and_evictions() -> None:
    policy = lmcache.KvpredictCachePolicy("lru", capacity=100)
    backend, now = ChunkBackend(8, policy), 0.0
    policy.index.clock = lambda: now
    a, b = ([ChunkKey(10 * k + i) for i in range(6)] for k in (1, 2))
    backend.serve(a[:4])
    now = 5.0
    backend.serve(b)  # evicts on the way
    now = 10.0
    assert backend.serve(a) < 4
    now = 15.0
    assert backend.serve([*a, ChunkKey(16)]) == 6
    now = 20.0
    backend.serve(b)
    index = policy.index
    for prompt in (a, b):
        numbers = list(map(hash, prompt))
        assert [index.before(number) for number in numbers] == [None, *numbers[:-1]]
    assert index.capacity == 8  # as it turned out
    assert index.pool.touches[index.node(hash(a[0]))] == 3
    assert index.pool.touches[index.node(hash(a[5]))] == 2
    check_chunks(backend)


def test_lmcache_request_in_progress_keeps_its_chunks_while_others_can_go() -> None:
    policy = lmcache.KvpredictCachePolicy("lru", capacity=100)
    backend, now = ChunkBackend(6, policy), 0.0
    policy.index.clock = lambda: now
    a, b = ([ChunkKey(10 * k + i) for i in range(6)] for k in (1, 2))
    backend.serve(a[:3])
    now = 5.0
    backend.serve(b[:3])
    now = 10.0
    found = backend.lookup(a[:3])
    for key in a[:3]:  # read, and not in use any more
        backend.hot_cache[key].pins = 0
    assert found == 3
    backend.store(a[3:])
    assert set(backend.hot_cache) == set(a)


def test_lmcache_chunks_that_came_unnoticed_are_found() -> None:
    policy = lmcache.KvpredictCachePolicy("lru", capacity=100)
    backend = ChunkBackend(40, policy)
    for k in range(40):  # what an earlier process wrote
        backend.hot_cache[ChunkKey(k)] = Memory()
    assert backend.evict()
    assert len(policy.index) == 39
    check_chunks(backend)
    lost = [ChunkKey(k) for k in (100, 101)]
    for key in lost:  # never written
        policy.update_on_put(key)
    while backend.evict():
        assert len(policy._keys) <= len(backend.hot_cache) + 3
    assert not backend.hot_cache
    policy.update_on_hit(ChunkKey(7), backend.hot_cache)  # of no such chunk
    policy.update_on_force_evict(ChunkKey(8))
    assert policy.get_evict_candidates(backend.hot_cache, 0) == []
    assert policy.get_evict_candidates(backend.hot_cache, 5) == []
    assert policy.safely.works


def test_lmcache_request_without_end_does_not_hold_all() -> None:
    policy = lmcache.KvpredictCachePolicy("lru", capacity=1000)
    policy.index.clock = lambda: 0.0  # never a pause
    backend = ChunkBackend(200, policy)
    for k in range(1000):
        backend.serve([ChunkKey(k)])
    assert len(policy._members) < 100
    check_chunks(backend)


def test_lmcache_falls_back_to_lru() -> None:
    policy = lmcache.KvpredictCachePolicy(Broken(), capacity=30)
    held = policy.init_mutable_mapping()
    for key in ("a", "b", "c"):
        held[key] = Chunk(0)
        policy.update_on_put(key)
    policy.update_on_hit("a", held)
    assert policy.get_evict_candidates(held, 2) == ["b", "c"]
    assert policy.safely.failures == 1


def test_the_policy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    assert policy_from_environment().name == "lru"
    monkeypatch.setenv(POLICY, "gdsf")
    assert policy_from_environment().name == "gdsf"
    Learned(every=7.0).save(tmp_path)
    monkeypatch.setenv(POLICY, str(tmp_path))
    assert policy_from_environment().every == 7.0


@pytest.mark.parametrize(
    ("install", "engine"), [(lmcache.install, "lmcache"), (sglang.register, "sglang"), (vllm_prefix.register, "vllm")]
)
def test_an_engine_that_is_not_installed_is_named(
    install: Callable[[], None], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POLICY, "lru")
    monkeypatch.setitem(sys.modules, engine, None)  # where it is installed, too
    with pytest.raises(MissingExtra, match=f"this adapter is for {engine}, .*: install {engine} beside kvpredict"):
        install()


@pytest.mark.parametrize(
    ("install", "module"),
    [
        (lmcache.install, "lmcache/v1/storage_backend/cache_policy.py"),
        (sglang.register, "sglang/srt/mem_cache/radix_cache.py"),
        (vllm_prefix.register, "vllm/v1/core/block_pool.py"),
    ],
)
def test_an_engine_of_another_inside_starts_all_the_same(
    install: Callable[[], None],
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A later version has moved one module, and emptied another: it keeps its own policy, and that is logged."""
    engine = module.split("/")[0]
    for name in [n for n in sys.modules if n.split(".")[0] == engine]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(POLICY, "lru")
    (tmp_path / module).parent.mkdir(parents=True)
    (tmp_path / engine / "__init__.py").touch()
    for found in (False, True):
        if found:
            (tmp_path / module).touch()
            importlib.invalidate_caches()
        caplog.clear()
        install()
        assert [r.message for r in caplog.records] == [
            f"this version of {engine} is not one that the adapter knows: {engine} keeps its own policy"
        ]
    for name in [n for n in sys.modules if n.split(".")[0] == engine]:
        monkeypatch.delitem(sys.modules, name)


class Ended:
    """A request of vLLM's that is over."""

    request_id, num_prompt_tokens, num_output_tokens = "a", 32, 0
    block_hashes = tuple(bytes([k] * 32) for k in range(2))


def test_a_log_that_cannot_be_written_costs_only_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(POLICY, "lru")
    monkeypatch.setenv(vllm_prefix.LOG, str(tmp_path / "missing" / "requests.jsonl"))
    books = vllm_prefix.Books(10)
    for _ in range(2):
        books.full(Ended, [], 0, 2, 1)
        books.ended(Ended, 16)
    assert [r.message for r in caplog.records] == [
        "vLLM prefix cache: $KVPREDICT_REQUEST_LOG cannot be written; no request is logged from now on"
    ]
    assert books.safely.works
    assert int(books.index.pool.tally[0]) == 4


@pytest.mark.parametrize("when", ["start", "later"])
def test_the_log_outlives_the_policy(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("this policy is broken")

    log = tmp_path / "requests.jsonl"
    monkeypatch.setenv(vllm_prefix.LOG, str(log))
    monkeypatch.setenv(POLICY, "no such policy" if when == "start" else "lru")
    books = vllm_prefix.Books(10)
    if when == "later":
        monkeypatch.setattr(PrefixIndex, "used", failing)
    for _ in range(3):
        books.following(books.full, Ended, [], 0, None, 1)
        books.following(books.ended, Ended, 16)
    books.log.close()
    assert books.safely.failures == 1
    trace = read_requests(log)
    assert len(trace) == 3
    assert len(trace.blocks) == 6
    assert not books.requests


def test_vllms_log_has_times_since_1970_and_what_was_computed_of_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm_prefix.LOG, str(tmp_path / "requests.jsonl"))
    monkeypatch.setenv(POLICY, "lru")
    books = vllm_prefix.Books(10)

    class Long(Ended):
        num_prompt_tokens = 500  # aborted after two blocks

    class Wide(Ended):
        block_hashes = tuple(bytes([k] * 32) for k in range(4))
        num_prompt_tokens = 70

    for request, ratio in ((Ended, 1), (Long, 1), (Wide, 2)):  # a block of the last is two hashes long
        books.full(request, [], 0, None, ratio)
        books.ended(request, 16)
        if request is Long:
            monkeypatch.setenv(vllm_prefix.LOG, str(tmp_path / "wide.jsonl"))
            books.log.close()
            books.log = None
    books.log.close()
    trace, wide = (read_requests(tmp_path / f"{name}.jsonl") for name in ("requests", "wide"))
    assert abs(trace.times - time.time()).max() < 60
    assert trace.input_tokens.tolist() == [32, 32]
    assert (wide.block_size, wide.prompts.tolist(), wide.input_tokens.tolist()) == (32, [2], [70])
    assert books.safely.works


def test_vllm_blocks_that_are_doubles_go_in_the_order_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "lru")
    vllm = prefix_cache()
    vllm_prefix._install(vllm.block_pool, vllm.manager)
    manager = vllm.manager.KVCacheManager(4)

    def request(name: str, *blocks: int) -> Any:
        hashes = [bytes([block] * 32) for block in blocks]
        return SimpleNamespace(request_id=name, block_hashes=hashes, is_finished=lambda: True)

    twins, other, large = [request("a", 1), request("b", 1)], request("c", 2), request("d", 3, 4, 5)
    for one in twins:  # both compute the block
        manager.begin(one)
    for one in twins:
        manager.computed(one, 0)
        manager.free(one)
    manager.begin(other)
    manager.computed(other, 0)
    manager.free(other)
    manager.begin(large)
    assert set(manager.block_pool.cached) == {other.block_hashes[0]}
    assert manager.block_pool.free_block_queue.books.safely.works


def test_vllm_blocks_in_use_are_pinned_where_they_stand_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "lru")
    vllm = prefix_cache()
    vllm_prefix._install(vllm.block_pool, vllm.manager)
    manager = vllm.manager.KVCacheManager(4)
    books = manager.block_pool.free_block_queue.books

    def request(name: str, *blocks: int) -> Any:
        hashes = [bytes([block] * 32) for block in blocks]
        return SimpleNamespace(request_id=name, block_hashes=hashes, is_finished=lambda: True)

    def pinned() -> list[int]:
        return [books.index.hash[node] for node in books.index.pool.running.nonzero()[0]]

    oldest, other = request("a", 1), request("b", 2)
    for one in (oldest, other):
        manager.begin(one)
        manager.computed(one, 0)
    assert pinned() == []
    manager.free(other)
    manager.begin(request("c", 3, 4, 5))
    assert set(manager.block_pool.cached) == set(oldest.block_hashes)
    assert pinned() == [*books.passed] == [hash(oldest.block_hashes[0])]
    manager.free(oldest)
    assert pinned() == [*books.passed] == []
    assert books.victim(0.0).block_hash == oldest.block_hashes[0]
    assert books.safely.works


def test_vllm_pools_of_another_queue_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "lru")
    vllm = prefix_cache()
    vllm_prefix._install(vllm.block_pool, vllm.manager)
    manager = vllm.manager.KVCacheManager(4)
    manager.block_pool.free_block_queue = FreeKVCacheBlockQueue(manager.block_pool.blocks)
    request = SimpleNamespace(request_id="a", block_hashes=[b"1"], is_finished=lambda: True)
    assert manager.begin(request) == 0
    manager.computed(request, 0)
    manager.free(request)


def test_a_log_without_a_policy_is_said_to_stay_empty(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.setenv(vllm_prefix.LOG, "requests.jsonl")
    vllm_prefix.register()
    assert "set it to lru" in caplog.text


def test_adapters_import_without_their_engines() -> None:
    code = "import kvpredict.llm.engines.vllm_prefix as p; p.register(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_eviction_passes_over_what_is_in_use_and_costs_no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    index = PrefixIndex(1000, "lru", requests=8)
    chains = [list(range(10 * k, 10 * k + 10)) for k in range(100)]
    for k, chain in enumerate(chains):
        index.used(chain, 10, (160, 0), times=(k, k))
        for block in chain:
            index.put(block, now=k)
    asked: list[int] = []

    def usable(block: int) -> bool:
        asked.append(block)
        return block not in (9, 25)  # a leaf, and a block with others after it

    assert index.pop_some(7, usable, now=200.0) == [19, 18, 17, 16, 15, 14, 13]
    assert asked[:2] == [9, 19]
    assert len(asked) == 8
    rest = index.pop_some(2000, usable, now=200.0)
    assert len(rest) == 1000 - 7 - 10 - 6  # the whole chain of 9, and of 25 all up to it
    assert 0 in index
    assert (index.pool.running == 0).all()


def test_a_mistake_in_hints_costs_the_hints_only() -> None:
    for wrong in ({"kvpredict": "soon"}, "soon", ["soon"], {"kvpredict": {"continues": 7}}):
        assert lenient_hints(wrong) == ({}, None)
    hints, session = lenient_hints({"kvpredict": {"continues": 0.5, "session": "a81"}})
    assert hints == {"continues": 0.5}
    assert session is not None
    assert session >= 0
    assert lenient_hints(None) == ({}, None)
    assert lenient_hints({"session": -5})[1] >= 0


def test_sessions_reach_the_policy() -> None:
    strategy = sglang.KvpredictStrategy("lru", capacity=64, block_size=4)
    strategy.observe(list(range(12)), 8, {"kvpredict": {"session": 7}})
    assert strategy.index.requests.session[0] == 7
    manager = OffloadManager(8, lambda c: KvpredictPolicy(c, "lru"), "0.33")
    manager.serve([b"a", b"b"], "1", {"kvpredict": {"session": 9}})
    assert manager.policy.index.requests.session[0] == 9


def test_an_engine_that_stores_blocks_itself_is_never_told_otherwise() -> None:
    index = PrefixIndex(4, Learned(every=0.0), requests=4)  # follows a ranking that stores on arrival at first
    index.used([1, 2, 3], 3, (48, 0), times=(1.0, 2.0))
    assert len(index) == 0
    index.put(1, now=3.0)
    assert list(index.held()) == [1]
