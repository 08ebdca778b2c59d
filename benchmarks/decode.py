"""The decode cache on a CPU: layouts of ragged storage, the policy's share of a step, and bytes.

    python -m benchmarks.decode

*Layouts*: one layer's attention for one new token over heads whose budgets differ, stored as groups of like heads (what
``DecodeCache`` does), as one flat buffer with sums over segments, and padded to the longest with a mask; their results
are compared before anything is timed. *Steps*: a model of SmolLM2-135M's shape with random weights, bfloat16, after
1,024 tokens; `learned` has random weights too, and other slots for every head, `learned_equal` equally many, and weighs
the attention received. Medians of layouts, means of steps; one process, one thread, seed 0.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvpredict.llm.decode.cache import DecodeCache
from kvpredict.llm.decode.evaluate import step_times
from kvpredict.llm.decode.fingerprint import model_identity, output_factor
from kvpredict.llm.decode.policies import decode_policy_names
from kvpredict.llm.decode.policies.learned import Learned
from kvpredict.llm.decode.probe import blank_probe

EQUAL = "learned_equal"
SHAPES = {  # KV heads, query heads a KV head, width, slots of each head
    "SmolLM2, a quarter of 1,024": (3, 3, 64, (77, 205, 486)),
    "SmolLM2, a quarter of 8,192": (3, 3, 64, (615, 1638, 3891)),
    "Llama-3.1-8B, a quarter of 4,096": (8, 4, 128, (128, 128, 512, 512, 512, 1024, 2048, 3328)),
}
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip


def median_us(run: Callable[[], Any], times: int = 30) -> float:
    """Return the median time of a call, microseconds."""
    run()
    took = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return 1e6 * statistics.median(took)


def layouts(
    batch: int, shape: tuple[int, int, int, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Callable[[], Tensor]]:
    """Return attention for one token in each layout, over the same random keys: -> [B, heads, G, D]."""
    heads, each, width, slots = shape
    query = torch.randn(batch, heads, each, width).to(dtype)
    keys = [torch.randn(batch, n, width).to(dtype) for n in slots]
    values = [torch.randn(batch, n, width).to(dtype) for n in slots]
    sizes = sorted(set(slots))
    groups = [
        (of, torch.stack([keys[h] for h in of], 1), torch.stack([values[h] for h in of], 1))
        for of in ([h for h in range(heads) if slots[h] == n] for n in sizes)
    ]
    order = [h for of, _, _ in groups for h in of]
    back = [order.index(h) for h in range(heads)]

    def grouped() -> Tensor:
        # Query heads of one KV head stand where queries would: no key is repeated, and there is no mask.
        return torch.cat([sdpa(query[:, of], k, v) for of, k, v in groups], 1)[:, back]

    flat_key, flat_value = torch.cat(keys, 1), torch.cat(values, 1)  # [B, all slots, D]
    head = torch.repeat_interleave(torch.arange(heads), torch.tensor(slots))  # [all slots]

    def flat() -> Tensor:
        logits = (query[:, head] * flat_key[:, :, None]).sum(-1).float() * width**-0.5  # [B, all slots, G]
        at = head[None, :, None].expand_as(logits)
        top = torch.full((batch, heads, each), -torch.inf).scatter_reduce(1, at, logits, "amax")
        weights = (logits - top[:, head]).exp()
        total = torch.zeros(batch, heads, each).scatter_add(1, at, weights)
        out = torch.zeros(batch, heads, each, width)
        out.index_add_(1, head, weights[..., None] * flat_value[:, :, None].float())
        return (out / total[..., None]).to(dtype)

    longest = max(slots)
    padded_key, padded_value = (
        torch.stack([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in held], 1)
        for held in (keys, values)
    )
    mask = (torch.arange(longest) < torch.tensor(slots)[:, None])[None, :, None]  # [1, heads, 1, longest]

    def padded() -> Tensor:
        return sdpa(query, padded_key, padded_value, mask)

    return {"groups": grouped, "flat": flat, "padded": padded}


def compare_layouts() -> None:
    """Print microseconds of each layout."""
    print("| shape | dtype | batch | groups, µs | flat | padded with a mask |\n|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 8):
                ways = layouts(batch, shape, dtype)
                truth = ways["padded"]().float()
                tolerance = 1e-4 if dtype == torch.float32 else 2e-2
                for way in ways.values():
                    torch.testing.assert_close(way().float(), truth, atol=tolerance, rtol=tolerance)
                took = [f"{median_us(way):,.0f}" for way in ways.values()]
                print(f"| {name} | {str(dtype).removeprefix('torch.')} | {batch} | {' | '.join(took)} |", flush=True)


def untrained(model: Any, equal: bool) -> Learned:
    """Return a learned policy with random weights: ``equal`` slots and attention received, or uneven slots without."""
    identity = model_identity(model)
    blank = blank_probe(output_factor(model), identity["width"])
    probe = replace(blank, weight=torch.randn_like(blank.weight), ages=torch.randn_like(blank.ages))
    if equal:
        probe = replace(probe, received=torch.randn_like(blank.received))
        return Learned(probe, identity, attention=True)
    return Learned(probe, identity, torch.rand(1, *probe.bias.shape) + 0.1, (0.25,))


def compare_steps(tokens: int, steps: int, policies: list[str]) -> None:
    """Print the time of decode steps after ``tokens`` tokens, and the bytes held."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).to(torch.bfloat16).eval()
    ids = torch.randint(0, 49152, (1, tokens))
    full = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=full, use_cache=True, logits_to_keep=1)
    everything = sum(layer.keys.nbytes + layer.values.nbytes for layer in full.layers)
    print(f"\nSmolLM2's shape, bfloat16, {tokens} tokens, the full cache holds {everything:,} bytes")
    print("| policy | budget | step, ms | policy, ms | share of the step | bytes held | of the full cache's |")
    print("|---|---|---|---|---|---|---|")
    for name in policies:
        budget = tokens // 4
        policy = untrained(model, name == EQUAL) if name in ("learned", EQUAL) else name
        kept: list[DecodeCache] = []

        def make(_: Any, when: str, policy: Any = policy, kept: list[DecodeCache] = kept) -> DecodeCache:
            kept.append(DecodeCache(tokens // 4, policy, model=model, when=when))
            return kept[-1]

        took = step_times(model, ids, make, steps)
        held = kept[-1].nbytes
        if name != "full":
            assert held == everything * budget // tokens, "the cache holds another number of bytes than its budget's"
        share = took["policy_us"] / took["step_us"]
        print(
            f"| {name} | {'' if name == 'full' else budget} | {took['step_us'] / 1e3:.1f} | "
            f"{took['policy_us'] / 1e3:.2f} | {share:.1%} | {held:,} | {held / everything:.1%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="The decode cache on a CPU.")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=48, help="a multiple of the interval, 16, weighs ranking rightly")
    parser.add_argument("--policies", nargs="*", default=[*(n for n in decode_policy_names() if n != "oracle"), EQUAL])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, one thread, seed 0\n"
    )
    compare_layouts()
    compare_steps(options.tokens, options.steps, options.policies)


if __name__ == "__main__":
    main()
