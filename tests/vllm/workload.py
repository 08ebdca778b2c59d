"""One engine run: serve a workload in a real vLLM and print what happened, as JSON.

    python -m tests.vllm.workload '{"rounds": 60, "seed": 0, "blocks": 70}'

The environment chooses the policy, the arguments of ``main`` the rest. The model is a two-layer Llama with random
weights, large enough for answers to depend on the whole prompt; prompts are token ids: a shared system prompt,
conversations that return, and scans of prompts that come once. The engine answers in milliseconds, so the clock is set
forward between the batches: policies see a server with two requests a second.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32
PACE = 0.5  # seconds a request
CONFIG = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2,
}  # fmt: skip
BYTES = 4 * 2 * 2 * 2 * 32 * BLOCK  # of a block: floats, keys and values, layers, heads, their size


def rounds(count: int, seed: int) -> list[list[list[int]]]:
    """Return batches of prompts: eight conversations, of which a few return each round, among scans."""
    rng = np.random.default_rng(seed)
    system = rng.integers(2, 250, 2 * BLOCK).tolist()
    talks = [system + rng.integers(2, 250, 3 * BLOCK).tolist() for _ in range(8)]
    out = []
    for r in range(count):
        batch = []
        for k in (r % 8, (r + 3) % 8):
            if len(talks[k]) > 14 * BLOCK:
                talks[k] = system + rng.integers(2, 250, 3 * BLOCK).tolist()
            talks[k] = talks[k] + rng.integers(2, 250, 20).tolist()
            batch.append(list(talks[k]))
        batch += [rng.integers(2, 250, 7 * BLOCK).tolist() for _ in range(3)]
        out.append(batch)
    return out


def set_clock_forward() -> Callable[[float], None]:
    """Return a function that lets seconds pass, as if the server had been idle."""
    clock, idle = time.monotonic, [0.0]
    time.monotonic = lambda: clock() + idle[0]

    def wait(seconds: float) -> None:
        idle[0] += seconds

    return wait


def fail_later(evictions: int) -> None:
    """Have the policies raise once they have chosen so many blocks."""
    from kvpredict.llm.prefix.index import PrefixIndex

    left = [evictions]

    def breaking(call: Any, blocks: Any) -> Any:
        def run(self: PrefixIndex, *args: Any, **named: Any) -> Any:
            left[0] -= blocks(*args)
            if left[0] < 0:
                raise RuntimeError("this policy is broken")
            return call(self, *args, **named)

        return run

    PrefixIndex.pop = breaking(PrefixIndex.pop, lambda *_: 1)
    PrefixIndex.pop_some = breaking(PrefixIndex.pop_some, lambda count, *_: count)


def make_model(folder: Path) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder)
    return str(folder)


def connector(eviction: str, chunks: int, forgetful: bool) -> dict[str, Any]:
    """Return vLLM's configuration of its offload tier, for the spec that works without a GPU."""
    extra: dict[str, Any] = {
        "spec_name": "HostTier", "spec_module_path": "tests.vllm.host_tier", "cpu_bytes_to_use": chunks * BYTES,
        "eviction_policy": eviction, "forgetful": forgetful,
    }  # fmt: skip
    if eviction == "KvpredictPolicy":
        extra["cache_policy_module_path"] = "kvpredict.llm.engines.vllm_offload"
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def what_is_left(scheduler: Any) -> dict[str, Any]:
    """Return what the scheduler still holds, and what the adapters think it does."""
    pool = scheduler.kv_cache_manager.block_pool
    books = getattr(pool.free_block_queue, "books", None)
    said = {
        "queue": type(pool.free_block_queue).__name__,
        "free": pool.get_num_free_blocks(),
        "failures": None if books is None else books.safely.failures,
        "pinned": None if books is None or books.index is None else int((books.index.pool.running > 0).sum()),
    }
    if scheduler.connector is None:
        return said
    offload = scheduler.connector.connector_scheduler
    manager, policy = offload.manager, offload.manager._policy
    said["tier"] = {
        "policy": type(policy).__name__,
        "chunks": manager._num_chunks,
        "held": manager._num_allocated_chunks - len(manager._free_list),
        "evictable": manager._num_evictable_cache_chunks,
        "being_written": manager._num_write_pending_chunks,
        "jobs": len(offload._jobs),
        "requests": len(offload._req_status),
        "fenced": len(offload._block_id_to_pending_jobs),
    }
    if said["tier"]["policy"] == "KvpredictPolicy":
        index = policy.index
        said["tier"] |= {
            "failures": policy.safely.failures,
            "blocks": len(policy.blocks),
            "in_use": sum(block.ref_cnt != 0 for block in policy.blocks.values()),
            "slots": len({block.chunk_id for block in policy.blocks.values()}),
            "indexed": len(index),
            "pinned": int((index.pool.running > 0).sum()),
            "open": len(policy._open),
        }
    return said


def main(
    count: int,
    seed: int,
    blocks: int,
    *,
    caching: bool = True,
    tier: str | None = None,
    chunks: int = 0,
    forgetful: bool = False,
    fail_after: int | None = None,
) -> None:
    wait = set_clock_forward()  # before anything notes the clock
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=make_model(Path(tempfile.mkdtemp())), skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
        seed=0, max_model_len=1024, block_size=BLOCK, num_gpu_blocks_override=blocks, max_num_seqs=8,
        enable_prefix_caching=caching, disable_log_stats=False,
        kv_transfer_config=connector(tier, chunks, forgetful) if tier else None,
    )  # fmt: skip
    if fail_after is not None:
        fail_later(fail_after)
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
    hits = asked = 0
    outputs = []
    for batch in rounds(count, seed):
        answers = llm.generate([{"prompt_token_ids": p} for p in batch], sampling, use_tqdm=False)
        outputs += [list(a.outputs[0].token_ids) for a in answers]
        hits += sum(a.num_cached_tokens or 0 for a in answers)
        asked += sum(len(p) for p in batch)
        wait(PACE * len(batch))
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    while scheduler.has_requests():  # the last transfers
        llm.llm_engine.step()
    counters = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
    said = {
        "hit_ratio": hits / asked,
        "tier_hit_ratio": counters["vllm:external_prefix_cache_hits"] / asked,
        "preemptions": counters["vllm:num_preemptions"],
        "outputs": outputs,
        **what_is_left(scheduler),
    }
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    options = json.loads(sys.argv[1])
    main(options.pop("rounds"), options.pop("seed"), options.pop("blocks"), **options)
