"""In a real vLLM for CPU: the adapters raise the hit ratio, change no output, leak nothing and survive errors.

Run by ``make test-vllm`` in an environment of its own.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="run by make test-vllm")

ROOT = Path(__file__).parents[2]
BLOCKS, ROUNDS = 70, 60


@cache
def served(policy: str | None, blocks: int = BLOCKS, log: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Serve the workload in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KVPREDICT_")}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1"}  # fmt: skip
    environment |= {"KVPREDICT_PREFIX_POLICY": policy} if policy else {}
    environment |= {"KVPREDICT_REQUEST_LOG": log} if log else {}
    command = [sys.executable, "-m", "tests.vllm.workload", str(ROUNDS), str(seed), str(blocks)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def test_lru_through_the_plugin_is_stock_lru() -> None:
    stock, ours = served(None), served("lru")
    assert (stock["queue"], ours["queue"]) == ("FreeKVCacheBlockQueue", "LearnedQueue")
    assert ours["outputs"] == stock["outputs"]
    assert ours["hit_ratio"] == pytest.approx(stock["hit_ratio"], abs=0.02)


def test_a_better_policy_hits_more_with_the_same_outputs() -> None:
    stock, lfu = served(None), served("lfu")
    print(f"stock LRU {stock['hit_ratio']:.3f}, LFU {lfu['hit_ratio']:.3f}")
    assert lfu["hit_ratio"] > stock["hit_ratio"] + 0.05
    assert lfu["outputs"] == stock["outputs"]


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_nothing_leaks_under_preemption(policy: str) -> None:
    tight = served(policy, blocks=33)
    assert tight["free"] == 33 - 1  # one is vLLM's null block
    assert tight["failures"] == 0
    assert tight["pinned"] == 0
    assert tight["outputs"] == served(None)["outputs"]


def test_a_policy_that_raises_falls_back_to_lru(tmp_path: Path) -> None:
    (tmp_path / "prefix_policy.json").write_text("{}")  # a folder that is no policy
    broken, stock = served(str(tmp_path)), served(None)
    assert broken["failures"] == 1
    assert broken["outputs"] == stock["outputs"]
    assert broken["hit_ratio"] == stock["hit_ratio"]


def test_record_train_deploy_measure(tmp_path: Path) -> None:
    from kvpredict.llm.prefix import fit_prefix, simulate_prefix
    from kvpredict.llm.request_files import read_requests

    log = str(tmp_path / "requests.jsonl")
    recorded = served("lru", log=log)
    trace = read_requests(log)
    assert len(trace) == 5 * ROUNDS
    assert trace.block_size == 32
    assert simulate_prefix(trace, "lru", BLOCKS - 1).hits > 0
    # The toy engine answers in milliseconds, and ages are told apart from seconds on: a server's pace, two a second.
    paced = replace(trace, times=np.arange(len(trace)) * 0.5)
    policy = fit_prefix(paced, BLOCKS, first=100)
    policy.save(tmp_path / "policy")
    deployed, stock = served(str(tmp_path / "policy"), seed=1), served(None, seed=1)
    print(
        f"recorded {recorded['hit_ratio']:.3f}; stock LRU {stock['hit_ratio']:.3f}, learned {deployed['hit_ratio']:.3f}"
    )
    assert deployed["failures"] == 0
    assert deployed["outputs"] == stock["outputs"]
    assert deployed["hit_ratio"] > stock["hit_ratio"]


def test_offload_tier_with_the_real_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.kv_offload.base import ReqContext, make_offload_key
    from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

    from kvpredict.llm.blocks import block_hashes
    from kvpredict.llm.engines import vllm_offload
    from kvpredict.llm.prefix import fit_prefix
    from kvpredict.llm.requests import RequestTrace
    from tests.vllm.workload import BLOCK, rounds

    # No engine runs here: the clock goes at a server's pace, two requests a second.
    pace = {"now": 0.0}
    monkeypatch.setattr(vllm_offload, "time", SimpleNamespace(monotonic=lambda: pace["now"]))
    asked_before = [prompt for batch in rounds(2 * ROUNDS, 1) for prompt in batch]
    times = np.arange(len(asked_before)) * 0.5
    trace = RequestTrace.from_lists(times, [block_hashes(prompt, BLOCK) for prompt in asked_before], BLOCK)
    trained = str(fit_prefix(trace, BLOCKS, first=100).save(tmp_path / "policy"))

    def ratio(name: str, module: str | None, policy: str | None) -> float:
        if policy:
            monkeypatch.setenv("KVPREDICT_PREFIX_POLICY", policy)
        manager = CPUOffloadingManager(BLOCKS, cache_policy=name, cache_policy_module_path=module)
        hits = asked = number = 0
        for batch in rounds(ROUNDS, 0):
            for prompt in batch:
                number += 1
                pace["now"] = 1000.0 + 0.5 * number
                keys = [
                    make_offload_key(repr(prompt[: (k + 1) * BLOCK]).encode(), 0) for k in range(len(prompt) // BLOCK)
                ]
                context = ReqContext(req_id=str(number))
                manager.on_new_request(context)
                found = 0
                while found < len(keys) and manager.lookup(keys[found], context).name == "HIT":
                    found += 1
                if found:
                    manager.prepare_load(keys[:found], context)
                    manager.complete_load(keys[:found], context)
                stored = manager.prepare_store(keys, context)
                if stored is not None:
                    manager.complete_store(stored.keys_to_store, context)
                manager.on_request_finished(context)
                hits, asked = hits + found, asked + len(keys)
        assert module is None or manager._policy.safely.works
        return hits / asked

    module = "kvpredict.llm.engines.vllm_offload"
    stock, ours, lfu, learned = (
        ratio("lru", None, None),
        ratio("KvpredictPolicy", module, "lru"),
        ratio("KvpredictPolicy", module, "lfu"),
        ratio("KvpredictPolicy", module, trained),
    )
    print(
        f"offload tier: stock LRU {stock:.3f}, LRU through the adapter {ours:.3f}, LFU {lfu:.3f}, learned {learned:.3f}"
    )
    assert ours == pytest.approx(stock, abs=0.02)
    assert min(lfu, learned) > stock + 0.05
