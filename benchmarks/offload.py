"""Cost of the adapter for vLLM's CPU offload tier, in microseconds a block of the requests served, and an eviction.

    python -m benchmarks.offload

A generated mix, seed 0, 1,500 requests, tiers of 10 % and of 1 % of the distinct blocks, where most blocks served are
found or most are stored and evicted, through the calls of vLLM's manager (``tests/llm/published.py``): look-up, load,
store, eviction. ``all`` is a block served, whatever that takes, with the manager's own cost in it; then the policy's
part apart: ``touch`` is what it is told of requests, a block served; ``store`` an insert; ``evict`` a block evicted.
"plain LRU" does what vLLM's own LRU policy does, an ordered dictionary. Each is the least processor time of three runs
in this process, compilation left out.
"""

import argparse
import json
import os
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from kvpredict.llm.engines.vllm_offload import KvpredictPolicy
from kvpredict.llm.prefix import fit_prefix
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from tests.llm.published import OffloadManager

RUNS = 3


class PlainLRU:
    """An ordered dictionary in the order of use."""

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


def serve(
    requests: list[list[bytes]], times: list[float], capacity: int, make: Callable[[int], Any], apart: bool = False
) -> tuple[dict[str, float], float, int]:
    """Return microseconds, the share of blocks found, and failures of the policy.

    Microseconds are those a block served; with ``apart`` those that the policy's calls take, a block served for what it
    is told of requests, a block stored and a block evicted.
    """
    manager, adapter = OffloadManager(capacity, make, "0.33"), None
    if isinstance(manager.policy, KvpredictPolicy):
        adapter = manager.policy
        assert adapter.index is not None
        adapter.index.clock = lambda: now  # the trace's time, which ranks are made of
    spent, counts = dict.fromkeys(("touch", "store", "evict"), 0.0), {"store": 0, "evict": 0}

    def timed(name: str, what: str) -> None:
        call = getattr(manager.policy, name)

        def run(*args: Any) -> Any:
            began = time.process_time()
            answer = call(*args)
            spent[what] += time.process_time() - began
            if what in counts:
                counts[what] += len(answer or ()) if what == "evict" else 1
            return answer

        setattr(manager.policy, name, run)

    if apart:
        for name in ("on_store_miss", "on_request_access", "on_request_finished"):
            timed(name, "touch")
        timed("insert", "store")
        timed("evict", "evict")
    blocks, found = sum(map(len, requests)), 0
    started = time.process_time()
    for i, (keys, now) in enumerate(zip(requests, times, strict=False)):  # noqa: B007 - the clock reads it
        found += manager.serve(keys, str(i))
    seconds = time.process_time() - started
    failures = 0 if adapter is None else adapter.safely.failures
    costs = {"all": seconds / blocks * 1e6}
    if apart:
        counts["touch"] = blocks
        costs = {what: spent[what] / max(1, counts[what]) * 1e6 for what in spent}
    return costs, found / blocks, failures


def keys_of(trace: RequestTrace) -> list[list[bytes]]:
    """Return each request's blocks as the bytes that vLLM's keys are."""
    ends = zip(trace.starts[:-1], trace.starts[1:], strict=True)
    return [[int(b).to_bytes(8, "little", signed=True) for b in trace.blocks[low:high]] for low, high in ends]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path, help="json file to write")
    options = parser.parse_args()
    trace = generate_requests("mixed", requests=options.requests, seed=0)
    requests, times = keys_of(trace), trace.times.tolist()
    frozen = fit_prefix(trace.head(0.5), trace.capacity(0.1), every=0.0)
    report: dict[str, Any] = {
        "python": platform.python_version(), "numba": numba.__version__, "numpy": np.__version__,
        "machine": platform.machine(), "load": round(os.getloadavg()[0], 1), "requests": len(requests),
        "uses": len(trace.blocks),
    }  # fmt: skip
    for capacity in (trace.capacity(0.1), trace.capacity(0.01)):
        row: dict[str, dict[str, float]] = {}
        for name, policy in {"plain LRU": None, "lru": "lru", "lfu": "lfu", "learned": frozen}.items():
            make = PlainLRU if policy is None else lambda c, p=policy: KvpredictPolicy(c, p)
            serve(requests[:20], times, capacity, make)  # compiles
            runs = [serve(requests, times, capacity, make, apart) for _ in range(RUNS) for apart in (False, True)]
            assert not any(failures for *_, failures in runs), name
            row[name] = {
                what: round(min(costs[what] for costs, *_ in runs if what in costs), 2)
                for what in ("all", "touch", "store", "evict")
            }
            row[name]["found"] = round(runs[0][1], 3)
        report[f"{capacity} blocks"] = row
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
