"""Tokens a second of the decode cache beside transformers' StaticCache with compile, and the memory roofline.

    python -m benchmarks.decode_gpu --model FOLDER          # SmolLM2's shape with random weights without --model

Needs a CUDA device with room for the full cache (batch 64 at 8,192 tokens of SmolLM2 in bfloat16: 12.1 GB, beside the
weights), torch for CUDA, and a C compiler for torch.compile. Speed does not depend on what the weights are.

Each cell decodes greedily after a prompt of ``context`` tokens. *Static*: StaticCache of full length, the model
compiled with ``mode="reduce-overhead"``, which captures CUDA graphs. *Decode*: ``DecodeCache`` at a share of the
context, its steps captured as graphs by ``Decoder``. *Roofline*: weights and keys and values once through memory a
step, at the bandwidth that a large copy reaches in this process. ``--device cpu`` runs the same code eagerly.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.decode import SMOLLM2
from kvpredict.llm.decode.cache import DecodeCache
from kvpredict.llm.decode.decoder import Decoder
from kvpredict.llm.models import load_model


def bandwidth(device: str) -> float:
    """Return bytes a second of reading in a large copy (what is written counts as well)."""
    a = torch.empty(2**30 if device != "cpu" else 2**26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    took = timed(lambda: b.copy_(a), device, 20)
    return 2 * a.nbytes / took


def timed(run: Callable[[], Any], device: str, times: int) -> float:
    """Return seconds a call, over ``times`` calls after three."""
    for _ in range(3):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def prompt(model: Any, batch: int, context: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (batch, context), generator=draw).to(model.device)


def static(model: Any, ids: torch.Tensor, steps: int, chunk: int) -> tuple[float, int]:
    """Return seconds a step and bytes of keys and values with StaticCache and compile."""
    device = ids.device.type
    model.set_attn_implementation("sdpa")
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + steps + 16)
    run = model if device == "cpu" else torch.compile(model, mode="reduce-overhead", fullgraph=True)
    context = ids.shape[1]
    token, position = ids[:, -1:].clone(), torch.tensor([[context - 1]], device=ids.device)
    with torch.no_grad():
        for start in range(0, context - 1, chunk):
            part = slice(start, min(start + chunk, context - 1))
            model(ids[:, part], past_key_values=cache, use_cache=True, logits_to_keep=1)

        def step() -> None:
            logits = run(token, position_ids=position, past_key_values=cache, use_cache=True).logits
            token.copy_(logits[:, -1:].argmax(-1))
            position.add_(1)

        took = timed(step, device, steps)
    return took, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def decode(
    model: Any, ids: torch.Tensor, steps: int, chunk: int, budget: int, policy: str, split: str, fused: bool
) -> tuple[float, int]:
    """Return the same for a decode cache."""
    cache = DecodeCache(budget, policy, model=model, split=split)
    cache.prefill(model, ids, chunk=chunk)
    decoder, token = Decoder(model, cache, compiled=fused), ids[:, -1:].clone()

    def step() -> None:
        token.copy_(decoder.step(token).argmax(-1, keepdim=True))

    for _ in range(2 * cache.interval + 2):  # both graphs are captured by then
        step()
    whole = cache.interval * max(1, steps // cache.interval)  # ranking steps in their proportion
    return timed(step, ids.device.type, whole), cache.nbytes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tokens a second on a GPU.")
    parser.add_argument("--model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--contexts", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--share", type=float, default=0.25, help="budget, of the context")
    parser.add_argument("--policy", default="keydiff", help="a name, or the folder of a trained policy")
    parser.add_argument("--split", default="equal", help="equal | pyramid")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--fused", action="store_true", help="compile the model under the decode cache's graphs")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device here. It needs one GPU with 16 GB and more, torch built for CUDA, transformers and a C "
            "compiler; then: python -m benchmarks.decode_gpu. With --device cpu the same code runs eagerly"
        )
    torch.manual_seed(0)
    if options.model:
        model, _ = load_model(options.model, "bfloat16", options.device)
    else:
        config = LlamaConfig(**(SMOLLM2 | {"num_hidden_layers": options.layers}))
        model = LlamaForCausalLM(config).to(options.device, torch.bfloat16).eval()
    speed = bandwidth(options.device)
    weights = sum(p.nbytes for p in model.parameters())
    name = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    print(
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {options.policy}, "
        f"{options.split} split, budget {options.share:.1%} of the context, copies at {speed / 1e9:,.0f} GB/s\n"
    )
    headings = ("batch", "context", "static, tokens/s", "of its roofline", "decode, tokens/s", "of its roofline")
    print(f"| {' | '.join(headings)} | ratio | ratio of rooflines |\n|---|---|---|---|---|---|---|---|")
    for batch in options.batches:
        for context in options.contexts:
            ids = prompt(model, batch, context)
            budget = round(options.share * context)
            took = {}
            took["static"] = static(model, ids, options.steps, options.chunk)
            took["decode"] = decode(
                model, ids, options.steps, options.chunk, budget, options.policy, options.split, options.fused
            )
            roof = {k: batch * speed / (weights + held) for k, (_, held) in took.items()}
            rate = {k: batch / seconds for k, (seconds, _) in took.items()}
            cells = [f"{rate[k]:,.0f} | {rate[k] / roof[k]:.0%}" for k in took]
            ratio, most = rate["decode"] / rate["static"], roof["decode"] / roof["static"]
            print(f"| {batch} | {context} | {' | '.join(cells)} | {ratio:.2f} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
