"""Cost of the engine adapters, in microseconds a block of the requests served, beside each engine's own LRU.

    python -m benchmarks.engines

A generated mix, seed 0, 1,500 requests, caches of 10 % and of 1 % of the distinct blocks, where most blocks served are
found or most are stored and evicted, through the calls that each engine's published source makes
(``tests/llm/published.py``): vLLM's manager of the CPU offload tier, SGLang's radix cache, LMCache's CPU backend.

``all`` is a block served, whatever that takes, with the engine's own cost in it; then the policy's part apart:
``touch`` is what it is told of requests and makes of that, a block served; ``store`` a block stored; ``evict`` a block
evicted. SGLang asks for the priority of every leaf when something must go: ``asked`` is one answer, ``asks`` how many
there are for each block evicted. "LRU" is what the engine's own LRU policy does. Each is the least processor time of
three runs in this process, compilation and the clock's own cost left out.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numba
import numpy as np

from kvpredict.llm.engines import lmcache, sglang, vllm_prefix
from kvpredict.llm.engines.guard import POLICY
from kvpredict.llm.engines.vllm_offload import KvpredictPolicy
from kvpredict.llm.prefix import fit_prefix
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from tests.llm.published import ChunkBackend, ChunkKey, LRUStrategy, OffloadManager, RadixCache, Request

RUNS = 3


class OffloadLRU:
    """An ordered dictionary in the order of use, which vLLM's own policy is."""

    def __init__(self, capacity: int) -> None:
        self.blocks: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any) -> Any:
        return self.blocks.get(key)

    def insert(self, key: Any, block: Any, *_: Any) -> None:
        self.blocks[key] = block

    def evict(self, n: int, protected: Any) -> list[tuple[Any, Any]] | None:
        chosen = []
        for key, block in self.blocks.items():
            if len(chosen) == n:
                break
            if block.ref_cnt == 0 and key not in protected:
                chosen.append(key)
        return [(key, self.blocks.pop(key)) for key in chosen] if len(chosen) == n else None

    def mark_evictable(self, key: Any) -> None: ...

    def mark_non_evictable(self, key: Any) -> None: ...

    def on_store_miss(self, keys: Iterable[Any], context: Any) -> None:
        self._touch(keys)

    def on_request_access(self, keys: Iterable[Any], context: Any) -> None:
        self._touch(keys)

    def on_request_finished(self, groups: Iterable[Iterable[Any]], *_: Any) -> None:
        for keys in groups:
            self._touch(keys)

    def _touch(self, keys: Iterable[Any]) -> None:
        for key in reversed(list(keys)):
            if key in self.blocks:
                self.blocks.move_to_end(key)


class ChunkLRU:
    """The same for LMCache."""

    def init_mutable_mapping(self) -> OrderedDict[Any, Any]:
        return OrderedDict()

    def update_on_hit(self, key: Any, cache_dict: OrderedDict[Any, Any]) -> None:
        cache_dict.move_to_end(key)

    def update_on_put(self, key: Any) -> None: ...

    def get_evict_candidates(self, cache_dict: OrderedDict[Any, Any], num_candidates: int = 1) -> list[Any]:
        return list(islice((key for key, chunk in cache_dict.items() if chunk.can_evict), num_candidates))


class StrategyLRU(LRUStrategy):
    """SGLang's own, told of requests and taking no notice."""

    def ended(self, request: Any) -> None: ...


class Costs:
    """Processor time of methods, less that of watched methods which they call, and how many blocks they were for."""

    own = 0.0  # seconds that the clock takes

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._inside = 0.0

    def watch(self, owner: Any, name: str, what: str, blocks: Callable[[Any], int]) -> None:
        """Count the method's time as ``what``, for ``blocks(answer)`` blocks."""
        call = getattr(owner, name)
        self.seconds.setdefault(what, 0.0)
        self.counts.setdefault(what, 0)

        def run(*args: Any, **named: Any) -> Any:
            before, self._inside = self._inside, 0.0
            began = time.process_time()
            answer = call(*args, **named)
            spent = time.process_time() - began
            self.seconds[what] += spent - self._inside - self.own
            self.counts[what] += blocks(answer)
            self._inside = before + spent
            return answer

        setattr(owner, name, run)


def clock_cost() -> float:
    """Return the least seconds that are counted for a call that takes none, of ten thousand calls at a time."""

    class Nothing:
        def call(self) -> None: ...

    found = []
    for _ in range(20):
        costs, nothing = Costs(), Nothing()
        costs.watch(nothing, "call", "call", lambda _: 1)
        for _ in range(10_000):
            nothing.call()
        found.append(costs.seconds["call"] / costs.counts["call"])
    return min(found)


class Host:
    """An engine with a policy in it: ``serve`` takes a request as ``prepare`` made it, and returns the blocks found."""

    adapter: Any = None

    def watch(self, costs: Costs) -> None:
        raise NotImplementedError

    def at(self, clock: Callable[[], float]) -> None:
        """Have the policy run by the trace's time, which ranks are made of."""
        if self.adapter is not None:
            self.adapter.index.clock = clock


class Offload(Host):
    def __init__(self, capacity: int, policy: Any) -> None:
        make = OffloadLRU if policy is None else lambda c: KvpredictPolicy(c, policy)
        self.manager = OffloadManager(capacity, make, "0.33")
        self.adapter = None if policy is None else self.manager.policy

    @staticmethod
    def prepare(blocks: list[int]) -> list[bytes]:
        return [b.to_bytes(8, "little", signed=True) for b in blocks]

    def serve(self, keys: list[bytes], number: int, now: float) -> int:
        return self.manager.serve(keys, str(number))

    def watch(self, costs: Costs) -> None:
        for name in ("on_store_miss", "on_request_access", "on_request_finished"):
            costs.watch(self.manager.policy, name, "touch", lambda _: 0)
        costs.watch(self.manager.policy, "insert", "store", lambda _: 1)
        costs.watch(self.manager.policy, "evict", "evict", lambda gone: len(gone or ()))


class Radix(Host):
    def __init__(self, capacity: int, policy: Any) -> None:
        class Cache(RadixCache): ...

        sglang._install(Cache)
        self.cache: Any = Cache(capacity * sglang.BLOCK, page_size=sglang.BLOCK)
        strategy = StrategyLRU() if policy is None else sglang.KvpredictStrategy(policy, capacity)
        self.cache.eviction_strategy = self.cache.kvpredict_strategy = strategy
        self.adapter = None if policy is None else strategy

    @staticmethod
    def prepare(blocks: list[int]) -> list[int]:
        return [token for b in blocks for token in [b % 2**31] * sglang.BLOCK]

    def serve(self, tokens: list[int], number: int, now: float) -> int:
        return int(self.cache.serve(Request(tokens, []), now)) // sglang.BLOCK

    def watch(self, costs: Costs) -> None:
        strategy, cache = self.cache.eviction_strategy, self.cache
        costs.watch(strategy, "ended", "touch", lambda _: 0)
        costs.watch(strategy, "get_priority", "asked", lambda _: 1)
        evict = cache.evict

        def counted(tokens: int) -> None:
            before = cache.room
            evict(tokens)
            costs.counts["evict"] = costs.counts.get("evict", 0) + (cache.room - before) // sglang.BLOCK

        cache.evict = counted


class Chunks(Host):
    def __init__(self, capacity: int, policy: Any) -> None:
        chosen = ChunkLRU() if policy is None else lmcache.KvpredictCachePolicy(policy, capacity)
        self.backend = ChunkBackend(capacity, chosen)
        self.adapter = None if policy is None else chosen

    @staticmethod
    def prepare(blocks: list[int]) -> list[ChunkKey]:
        return [ChunkKey(b) for b in blocks]

    def serve(self, keys: list[ChunkKey], number: int, now: float) -> int:
        return self.backend.serve(keys)

    def watch(self, costs: Costs) -> None:
        if self.adapter is not None:
            costs.watch(self.adapter.index, "used", "touch", lambda _: 0)
        costs.watch(self.backend.policy, "update_on_hit", "touch", lambda _: 0)
        costs.watch(self.backend.policy, "update_on_put", "store", lambda _: 1)
        costs.watch(self.backend.policy, "get_evict_candidates", "evict", len)


class Prefix(Host):
    """vLLM's own: its cache manager, block pool and requests, without a model."""

    size = 16  # tokens a block

    def __init__(self, capacity: int, policy: Any) -> None:
        import torch
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core import block_pool, kv_cache_manager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.request import Request, RequestStatus

        if policy is not None:
            folder = tempfile.TemporaryDirectory()
            named = policy if isinstance(policy, str) else str(policy.save(Path(folder.name) / "policy"))
            os.environ[POLICY] = named
            vllm_prefix._install(block_pool, kv_cache_manager)
        init_none_hash(sha256)
        spec = FullAttentionSpec(block_size=self.size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        config = KVCacheConfig(capacity + 1, [], [KVCacheGroupSpec(["layer"], spec)])
        self.manager = kv_cache_manager.KVCacheManager(config, 2**20, self.size, self.size)
        self.queue = self.manager.block_pool.free_block_queue
        self.adapter = None if policy is None else self.queue.books
        self._make = partial(
            Request, sampling_params=SamplingParams(max_tokens=1), pooling_params=None,
            block_hasher=get_request_block_hasher(self.size, sha256),
        )  # fmt: skip
        self._over = RequestStatus.FINISHED_STOPPED

    def prepare(self, blocks: list[int]) -> list[int]:
        return [token for b in blocks for token in [b % 2**31] * self.size]

    def serve(self, tokens: list[int], number: int, now: float) -> int:
        request = self._make(str(number), tokens)
        blocks, found, *_ = self.manager.get_computed_blocks(request)
        if self.manager.allocate_slots(request, len(tokens) - found, found, blocks) is not None:
            request.num_computed_tokens = len(tokens)
            request.status = self._over
            self.manager.free(request)
        return int(found) // self.size

    def at(self, clock: Callable[[], float]) -> None:
        super().at(clock)
        if self.adapter is not None:
            self.adapter.clock = clock

    def watch(self, costs: Costs) -> None:
        for name in ("append", "append_n"):
            costs.watch(self.queue, name, "touch", lambda _: 0)
        costs.watch(self.queue, "popleft_n", "evict", len)
        if self.adapter is not None:
            costs.watch(self.adapter, "ended", "touch", lambda _: 0)
            costs.watch(self.adapter, "full", "touch", lambda _: 0)
            costs.watch(self.adapter, "stored", "store", int)


HOSTS: dict[str, Any] = {"vLLM's offload tier": Offload, "SGLang": Radix, "LMCache": Chunks}
if find_spec("vllm") is not None:  # the environment of ``make test-vllm``
    HOSTS = {"vLLM's prefix cache": Prefix}


def serve(host: Any, requests: list[list[int]], times: list[float], costs: Costs | None = None) -> dict[str, float]:
    """Serve all requests; return microseconds a block, apart where there are ``costs``, else the share found too."""
    if costs is not None:
        host.watch(costs)
    now, found, blocks = 0.0, 0, sum(map(len, requests))
    host.at(lambda: now)
    prepared = [host.prepare(keys) for keys in requests]
    started = time.process_time()
    for i, (keys, now) in enumerate(zip(prepared, times, strict=False)):
        found += host.serve(keys, i, now)
    seconds = time.process_time() - started
    assert host.adapter is None or host.adapter.safely.works
    if costs is None:
        return {"all": seconds / blocks * 1e6, "found": found / blocks}
    counts = {what: count or blocks for what, count in costs.counts.items()}
    row = {what: spent / counts[what] * 1e6 for what, spent in costs.seconds.items()}
    if "asked" in row:
        row["asks"] = counts["asked"] / counts["evict"]
    return row


def policies(trace: RequestTrace) -> Iterator[tuple[str, Any]]:
    yield "LRU", None
    yield "lru", "lru"
    yield "lfu", "lfu"
    yield "learned", fit_prefix(trace.head(0.5), trace.capacity(0.1), every=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path, help="json file to write")
    options = parser.parse_args()
    trace = generate_requests("mixed", requests=options.requests, seed=0)
    ends = zip(trace.starts[:-1], trace.starts[1:], strict=True)
    requests, times = [trace.blocks[low:high].tolist() for low, high in ends], trace.times.tolist()
    Costs.own = clock_cost()
    report: dict[str, Any] = {
        "python": platform.python_version(), "numba": numba.__version__, "numpy": np.__version__,
        "machine": platform.machine(), "load": round(os.getloadavg()[0], 1), "requests": len(requests),
        "uses": len(trace.blocks), "clock": round(Costs.own * 1e6, 3),
    }  # fmt: skip
    tried = list(policies(trace))
    for engine, make in HOSTS.items():
        capacities = trace.capacity(0.1), trace.capacity(0.01)
        report[engine] = {f"{capacity} blocks": {} for capacity in capacities}
        for name, policy in tried:  # LRU first: vLLM has the plugin in it from then on
            for capacity in capacities:
                serve(make(capacity, policy), requests[:20], times)  # compiles
                best: dict[str, float] = {}
                for costs in [None, Costs()] * RUNS:
                    found = serve(make(capacity, policy), requests, times, costs and Costs())
                    best = {**best, **{what: min(value, best.get(what, value)) for what, value in found.items()}}
                rows = report[engine][f"{capacity} blocks"]
                rows[name] = {what: round(value, 3 if what == "found" else 2) for what, value in best.items()}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
