"""One engine run: serve a workload in a real vLLM and print what happened, as JSON.

    python -m tests.vllm.workload ROUNDS SEED BLOCKS

The environment chooses the policy. The model is a two-layer Llama with dummy weights; prompts are token ids: a shared
system prompt, conversations that return, and scans of prompts that come once.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

BLOCK = 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 256,
    "max_position_embeddings": 2048, "torch_dtype": "float32", "rms_norm_eps": 1e-5, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip


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


def main(count: int, seed: int, blocks: int) -> None:
    from vllm import LLM, SamplingParams

    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, dtype="float32", seed=0,
        max_model_len=1024, block_size=BLOCK, num_gpu_blocks_override=blocks, max_num_seqs=8,
        enable_prefix_caching=True, disable_log_stats=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
    hits = asked = 0
    outputs = []
    for batch in rounds(count, seed):
        answers = llm.generate([{"prompt_token_ids": p} for p in batch], sampling, use_tqdm=False)
        outputs += [list(a.outputs[0].token_ids) for a in answers]
        hits += sum(a.num_cached_tokens or 0 for a in answers)
        asked += sum(len(p) for p in batch)
    pool = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    books = getattr(pool.free_block_queue, "books", None)
    said = {
        "hit_ratio": hits / asked,
        "outputs": outputs,
        "queue": type(pool.free_block_queue).__name__,
        "free": pool.get_num_free_blocks(),
        "blocks": blocks,
        "failures": None if books is None else books.safely.failures,
        "pinned": None if books is None or books.index is None else int((books.index.pool.running > 0).sum()),
    }
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main(*map(int, sys.argv[1:4]))
