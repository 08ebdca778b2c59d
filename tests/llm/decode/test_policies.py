"""What the host keeps and reads is what the slow twin keeps and reads, for every policy, layout and way through."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvpredict as kvp
from kvpredict.llm.decode.policy import Arrival
from tests.llm.decode import models, naive

TWINS = ("h2o", "keydiff", "keynorm", "random", "snapkv", "tova", "window")
WAYS = {
    "steps": [1] * 60,
    "prompt, then steps": [30] + [1] * 30,
    "chunks": [9, 9, 9, 9, 9, 9, 6],
    "chunks and steps": [25, 7, 1, 1, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8],
}


def compare(
    layout: str, name: str, blocks: list[int], *, batch: int = 1, pads: int = 0, budget: int = 20, interval: int = 3,
    split: Any = None, when: str = "steps", sinks: int = 2, recent: int = 4,
) -> None:  # fmt: skip
    on = models.model(layout)
    ids = models.tokens(batch, sum(blocks))
    mask = torch.ones_like(ids)
    mask[0, :pads] = 0
    seen: dict[int, list[Arrival]] = {}
    read: dict[int, list[torch.Tensor]] = {}
    cache = kvp.DecodeCache(
        budget, naive.spied(models.policy(name, on, ids), seen), model=on, sinks=sinks, recent=recent,
        interval=interval, split=split, when=when,
    )  # fmt: skip
    hooks = []
    for module in on.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            out = next(getattr(module, n) for n in ("o_proj", "c_proj", "dense") if hasattr(module, n))
            keep = read.setdefault(module.layer_idx, [])
            hooks.append(out.register_forward_pre_hook(lambda _, args, keep=keep: keep.append(args[0])))
    try:
        models.read(on, cache, ids, blocks, mask if pads else None)
    finally:
        for hook in hooks:
            hook.remove()
    kept = [cache.kept(b) for b in range(batch)]
    for layer in seen:
        outputs = torch.cat(read[layer], 1)  # [B, tokens, heads * D]
        heads = seen[layer][0].key.shape[1]
        for b in range(batch):
            real = outputs[b, pads if b == 0 else 0 :].unflatten(1, (heads, -1, seen[layer][0].value.shape[-1]))
            for head in range(heads):
                positions, expected = naive.replay(
                    name, seen[layer], b, head, slots=int(cache.slots[layer, head]), sinks=sinks, recent=recent,
                    interval=interval, window=cache.layers[layer].window, grows_after_prompt=when == "prefill",
                )  # fmt: skip
                # Which of the tokens behind a sliding window still lie in slots is nobody's business.
                behind = int(cache.clock.now[b]) - (cache.layers[layer].window or 10**6)
                held = [p for p in kept[b][layer][head].tolist() if p > behind]
                assert held == [p for p in positions if p > behind], (layer, b, head)
                torch.testing.assert_close(real[:, head], naive.to_tensor(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TWINS)
def test_every_way_through(name: str, way: str) -> None:
    compare("llama", name, WAYS[way])


@pytest.mark.parametrize("layout", [m for m in models.MAKERS if m != "llama"])
@pytest.mark.parametrize("name", ["h2o", "tova"])  # keydiff looks behind windows, and qwen3's keys have one norm
def test_every_layout(name: str, layout: str) -> None:
    compare(layout, name, WAYS["chunks and steps"])


@pytest.mark.parametrize("name", TWINS)
def test_budgets_that_differ_by_head(name: str) -> None:
    compare("gpt2", name, [31] + [1] * 20, split=[[1, 3, 1, 2], [2, 2, 1, 3]])


@pytest.mark.parametrize("name", TWINS)
def test_padded_batches(name: str) -> None:
    compare("llama", name, [24, 9] + [1] * 20, batch=2, pads=11, interval=1)


@pytest.mark.parametrize("name", ["h2o", "window"])
def test_padded_batches_under_a_sliding_window(name: str) -> None:
    compare("mistral", name, [24, 9] + [1] * 20, batch=2, pads=11, interval=1)


@pytest.mark.parametrize("name", ["snapkv", "keynorm"])
def test_once_after_the_prompt(name: str) -> None:
    compare("llama", name, [40, 1, 1, 5, 1, 1], when="prefill")


def test_long_prompts_go_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvpredict.llm.decode import layer

    monkeypatch.setattr(layer, "QUERIES", 32)  # snapkv's window, so that its last block holds it whole
    compare("llama", "h2o", [75] + [1] * 8)
    compare("llama", "tova", [75] + [1] * 8)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(TWINS),
    blocks=st.lists(st.sampled_from([1, 1, 1, 2, 5, 13, 30]), min_size=1, max_size=24),
    budget=st.integers(8, 30),
    interval=st.integers(1, 4),
    when=st.sampled_from(["steps", "prefill"]),
    split=st.sampled_from(["equal", "pyramid", [[1, 2], [3, 1]]]),
)
def test_any_way_through(name: str, blocks: list[int], budget: int, interval: int, when: str, split: Any) -> None:
    total = 0
    for end, block in enumerate(blocks):
        total += block
        if total > 150:
            blocks = blocks[:end]
            break
    compare("llama", name, blocks or [3], budget=budget, interval=interval, when=when, split=split, sinks=1, recent=2)


def test_random_numbers_are_even_and_differ_between_heads_layers_and_seeds() -> None:
    from kvpredict.llm.decode.policies.random import Random

    position = torch.arange(4000, dtype=torch.int32)[None]
    key = torch.zeros(1, 2, 4000, 1)
    drawn = [
        Random(seed).arrive(Arrival(layer, key, key, position))[0, ..., 0] / 2**24
        for seed in (0, 1)
        for layer in (0, 1)
    ]
    rows = torch.cat(drawn)  # [8, 4000]
    assert (rows.mean(1) - 0.5).abs().max() < 0.03
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.06
    lagged = torch.stack([rows[0, :-7], rows[0, 7:], rows[0, 1:-6]])
    assert torch.corrcoef(lagged).fill_diagonal_(0).abs().max() < 0.06
