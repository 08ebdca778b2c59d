"""Soft gates: eviction made differentiable.

A token of the prefix that a head would evict is not removed but faded: the logarithm of its gate, between 0 and 1, is
added to its attention logits. ``gate = sigmoid((score - tau) / T)`` with tau such that the gates sum to the budget,
over all heads together (``scope="model"``, heads then compete for slots) or in each head (``scope="head"``, equal
slots). As T falls the gates harden into what the cache does. The model stays as it is: attention is looked up by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvpredict.core.errors import KvpredictError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCOPES", "gated", "hard", "kept", "log_gates", "solve_tau"]

SCOPES = ("model", "head")
NAME = "kvpredict_gates"
_EVICTED = -1e4  # logarithm of a closed gate; finite, so that no row of attention is empty
_active: dict[str, Any] = {"gates": None}


def solve_tau(score: "Tensor", budget: "Tensor | float", temperature: float, steps: int = 50) -> "Tensor":
    """Return tau [R, 1] with ``sigmoid((score - tau) / T).sum(1) = budget`` in each row of ``score`` [R, n].

    Found by bisection; a last Newton step carries the gradient, which makes it that of the implicit function.

    Raises
    ------
    KvpredictError
        When the budget is not between 0 and n, where there is no solution.
    """
    import torch

    wanted = torch.as_tensor(budget, dtype=score.dtype, device=score.device).expand(len(score))[:, None]
    if bool((wanted <= 0).any()) or bool((wanted >= score.shape[1]).any()):
        raise KvpredictError(
            f"gates of {score.shape[1]} tokens cannot sum to {budget}: the budget must leave more than the protected "
            "tokens and less than all"
        )
    with torch.no_grad():
        low = score.min(1, keepdim=True).values - 20 * temperature - 10
        high = score.max(1, keepdim=True).values + 20 * temperature + 10
        for _ in range(steps):
            middle = (low + high) / 2
            above = torch.sigmoid((score - middle) / temperature).sum(1, keepdim=True) > wanted
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        tau = (low + high) / 2
        gate = torch.sigmoid((score - tau) / temperature)
        slope = (gate * (1 - gate)).sum(1, keepdim=True).clamp_min(1e-6) / temperature
    return tau + (torch.sigmoid((score - tau) / temperature).sum(1, keepdim=True) - wanted) / slope


def log_gates(score: "Tensor", slots: float, temperature: float, scope: str = "model") -> "Tensor":
    """Return the logarithms of the gates of free tokens, of the shape of ``score`` [L, H, n].

    ``slots`` is the number of tokens a head keeps of the n, on average over heads or in each.
    """
    import torch

    layers, heads, count = score.shape
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)
    rows, total = (score.reshape(1, -1), slots * layers * heads) if scope == "model" else (score.flatten(0, 1), slots)
    tau = solve_tau(rows, total, temperature)
    return torch.nn.functional.logsigmoid((rows - tau) / temperature).reshape(layers, heads, count)


def kept(score: "Tensor", slots: "Tensor | int", scope: str = "model") -> "Tensor":
    """Return which tokens stay, bool [L, H, n]: the best of all heads, or of each head; ``slots`` a head, or [L, H]."""
    import torch

    layers, heads, _ = score.shape
    if scope == "model" and not isinstance(slots, torch.Tensor):
        chosen = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        chosen[score.flatten().topk(slots * layers * heads).indices] = True
        return chosen.view_as(score)
    rank = score.argsort(-1, descending=True).argsort(-1)
    given = slots if isinstance(slots, torch.Tensor) else torch.full((layers, heads), slots)
    return rank < given.to(score.device)[..., None]


@contextmanager
def gated(model: Any, gates: "Tensor") -> Iterator[None]:
    """Fade tokens of the cache while the model runs: ``gates`` [L, H, P] logarithms, for the first P keys.

    The batch has one sequence, the cache holds every key, and there is no padding.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    config = model.config.get_text_config()
    before = config._attn_implementation
    model.set_attn_implementation(NAME)
    _active["gates"] = gates
    try:
        yield
    finally:
        _active["gates"] = None
        model.set_attn_implementation(before)


def hard(chosen: "Tensor") -> "Tensor":
    """Return gates that are open for ``chosen`` [L, H, P] and closed for the others."""
    import torch

    return torch.zeros(chosen.shape, device=chosen.device).masked_fill(~chosen, _EVICTED)


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

    gates = _active["gates"][module.layer_idx]  # [H, P]
    batch, heads, fresh, width = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    grouped = query.view(batch, kv_heads, heads // kv_heads, fresh, width)
    logits = (grouped @ key[:, :, None].mT).float() * (width**-0.5 if scaling is None else scaling)  # [B, H, G, T, S]
    logits = logits + torch.nn.functional.pad(gates, (0, slots - gates.shape[-1]))[:, None, None, :]
    age = torch.arange(slots - fresh, slots, device=key.device)[:, None] - torch.arange(slots, device=key.device)
    hidden = age < 0
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    if window is not None:
        hidden = hidden | (age >= window)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype)
    out = weights @ value[:, :, None]  # [B, H, G, T, D]
    return out.reshape(batch, heads, fresh, width).transpose(1, 2).contiguous(), None
