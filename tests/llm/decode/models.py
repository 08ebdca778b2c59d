"""Tiny random models of several layouts, and a decode policy of each name made for them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kvpredict.llm.decode.policies import decode_policy, decode_policy_names
from kvpredict.llm.decode.policies.oracle import Oracle, record_future
from kvpredict.llm.decode.policy import DecodePolicy
from tests.llm.decode.trained import learned

VOCABULARY = 199
WINDOW = 24  # of the sliding ones
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": None,
    "initializer_range": 0.3,  # attention that is far from even
}

MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**PLAIN)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**PLAIN)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**PLAIN, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3,
            bos_token_id=0, eos_token_id=None,
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(  # Pythia
        GPTNeoXConfig(**{k: v for k, v in PLAIN.items() if k != "num_key_value_heads"}, max_position_embeddings=512)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**PLAIN, sliding_window=WINDOW)),
    "mixed": lambda: Qwen2ForCausalLM(  # one layer looks at everything, the other through a window
        Qwen2Config(**PLAIN, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
}  # fmt: skip


def model(name: str = "llama") -> Any:
    """Return the model of that layout, the same each time."""
    return _made(name)


@cache  # of one argument that is always given: model() and model("llama") are the same
def _made(name: str) -> Any:
    torch.manual_seed(3)
    return MAKERS[name]().eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids, none twice in a sequence: equal tokens would make ties."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(VOCABULARY - 1, generator=draw)[:length] + 1 for _ in range(batch)])


def oracle(on: Any, ids: torch.Tensor) -> Oracle:
    """Return an oracle of these sequences."""
    return Oracle(record_future(on, ids, 4), 4)


# Policies that need more than a name; every other one is made by its name.
FACTORIES: dict[str, Callable[[Any, torch.Tensor], DecodePolicy]] = {"learned": learned, "oracle": oracle}

NAMES = decode_policy_names()


def policy(name: str, on: Any, ids: torch.Tensor) -> DecodePolicy:
    """Return the policy called ``name`` for the model ``on``, which will read ``ids``."""
    return FACTORIES[name](on, ids) if name in FACTORIES else decode_policy(name)


def read(on: Any, cache: Any, ids: torch.Tensor, blocks: list[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Run ``ids`` through the model in blocks of these lengths, return the logits [B, tokens, vocabulary]."""
    out, start = [], 0
    position = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for length in blocks:
            part = slice(start, start + length)
            given = {} if mask is None or position is None else {
                "attention_mask": mask[:, : part.stop], "position_ids": position[:, part]
            }  # fmt: skip
            out.append(on(ids[:, part], past_key_values=cache, use_cache=True, **given).logits)
            start = part.stop
    return torch.cat(out, 1)
