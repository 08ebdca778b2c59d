"""Observe: one forward pass of a model, and what its attention layers saw on the way.

Hidden states come from hooks on the attention modules, keys and values from the cache that the pass fills. Attention
is looked at only where it is asked for; it is then computed here, in blocks of queries, and only sums and maxima over
short spans of queries are kept, so memory grows with the context and not with its square.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvpredict.llm.decode.features import SPAN, fading, later, norm_features
from kvpredict.llm.decode.fingerprint import attention_layers

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Attention", "Observed", "observe", "prefix_cache"]

NAME = "kvpredict_observe"
_BLOCK = 16 * SPAN  # queries computed at once
_active: dict[str, Any] = {"seen": None, "early": 0}


@dataclass(frozen=True)
class Attention:
    """What tokens received in one layer; N spans of ``SPAN`` queries, whose attention is one maximum and one sum."""

    most: "Tensor"  # [H, N, S], the most that a query of the span paid, over the group's heads too
    total: "Tensor"  # [H, N, S], the sum over the span's queries, mean over the group's heads
    early: "Tensor"  # [H, S], the most in a token's first steps

    def received(self, tokens: int) -> "Tensor":
        """Return what ``received_features`` takes, [H, tokens, 3], when the first ``tokens`` have come: whole spans."""
        import torch

        query = torch.arange(0, tokens, SPAN, device=self.most.device)[:, None]  # [spans, 1]
        count = later(query, torch.arange(tokens, device=query.device))  # [spans, tokens]
        most = self.most[:, : len(query), :tokens] * count
        total = self.total[:, : len(query), :tokens] * count
        recent = total * fading(query, query[-1])
        return torch.stack([most.amax(1), total.sum(1), recent.sum(1)], dim=-1)


@dataclass(frozen=True)
class Observed:
    """One sequence of T tokens in all layers."""

    hidden: list["Tensor"]  # L of [1, T, E]
    key: list["Tensor"]  # L of [1, H, T, D]
    value: list["Tensor"]  # L of [1, H, T, D]
    logits: "Tensor"  # [tail, vocabulary], of the last tokens
    attention: list[Attention]  # L, or none

    def norms(self, factor: "Tensor", layer: int, tokens: int | None = None) -> "Tensor":
        """Return ``norm_features`` of the first tokens, [1, H, tokens, 4]."""
        part = slice(tokens)
        return norm_features(
            self.hidden[layer][:, part], self.key[layer][:, :, part], self.value[layer][:, :, part], factor[layer]
        )


def observe(model: Any, tokens: "Tensor", *, tail: int = 1, attention: bool = False, early: int = 0) -> Observed:
    """Run ``model`` over ``tokens`` [1, T] without gradients.

    Parameters
    ----------
    tail : int
        How many of the last tokens' logits are wanted.
    attention : bool
        Whether to look at attention; slower.
    early : int
        Steps after a token's arrival over which ``Attention.early`` counts.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    hidden: list[Any] = []
    with torch.inference_mode(False), torch.no_grad(), _noting(model, hidden, attention, early) as seen:
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=tail)
    layers: list[Any] = list(cache.layers)
    keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
    return Observed(hidden, keys, values, out.logits[0], seen)


def prefix_cache(seen: Observed, tokens: int) -> Any:
    """Return a cache that holds the keys and values of the first ``tokens`` tokens."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(seen.key, seen.value, strict=True)):
        cache.update(key[:, :, :tokens], value[:, :, :tokens], layer)
    return cache


@contextmanager
def _noting(model: Any, hidden: list[Any], attention: bool, early: int) -> Iterator[list[Attention]]:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in attention_layers(model)]
    before = model.config.get_text_config()._attn_implementation
    seen: list[Attention] = []
    if attention:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)
        _active.update(seen=seen, early=early)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        if attention:
            _active.update(seen=None, early=0)
            model.set_attn_implementation(before)


def _attention(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> "tuple[Tensor, None]":
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _, heads, count, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    factor = width**-0.5 if scaling is None else scaling
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None) or count
    spans = -(-count // SPAN)
    most = torch.zeros(kv_heads, spans, count, device=key.device)
    total = torch.zeros(kv_heads, spans, count, device=key.device)
    early = torch.zeros(kv_heads, count, device=key.device)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        q = query[0, :, start:stop].reshape(kv_heads, group, stop - start, width)
        logits = (q @ key[0, :, None, :stop].mT).float() * factor  # [H, G, t, stop]
        age = torch.arange(start, stop, device=key.device)[:, None] - torch.arange(stop, device=key.device)
        weights = logits.masked_fill((age < 0) | (age >= window), -torch.inf).softmax(-1)
        highest, mean = weights.amax(1), weights.mean(1)  # [H, t, stop]
        first, last = start // SPAN, -(-stop // SPAN)
        padded = (0, 0, 0, (last - first) * SPAN - (stop - start))
        by_span = (kv_heads, last - first, SPAN, stop)
        most[:, first:last, :stop] = torch.nn.functional.pad(highest, padded).view(by_span).amax(2)
        total[:, first:last, :stop] = torch.nn.functional.pad(mean, padded).view(by_span).sum(2)
        if _active["early"]:
            near = highest.masked_fill((age <= 0) | (age > _active["early"]), 0.0).amax(1)
            early[:, :stop] = torch.maximum(early[:, :stop], near)
    _active["seen"].append(Attention(most, total, early))
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
