"""A learned decode policy for a tiny model: random weights, and a model's own identity."""

from dataclasses import replace
from typing import Any

import torch

from kvpredict.llm.decode.fingerprint import model_identity, output_factor
from kvpredict.llm.decode.policies.learned import Learned
from kvpredict.llm.decode.probe import Probe, blank_probe


def random_probe(on: Any, units: int = 3, seed: int = 0) -> Probe:
    """Return a probe whose every array is random."""
    draw = torch.Generator().manual_seed(seed)
    blank = blank_probe(output_factor(on), model_identity(on)["width"], units)
    scores = ("mean", "weight", "norms", "ages", "bias", "early", "received", "inner", "inner_bias", "outer")
    return replace(
        blank, **{name: 0.3 * torch.randn(getattr(blank, name).shape, generator=draw) for name in scores},
        scale=1 + torch.rand(blank.scale.shape, generator=draw),
    )  # fmt: skip


def learned(
    on: Any,
    ids: torch.Tensor | None = None,
    *,
    delay: int = 0,
    attention: bool = False,
    split: torch.Tensor | None = None,
) -> Learned:
    """Return a learned policy for the model ``on``."""
    splits, budgets = (None, ()) if split is None else (split[None], (0.25,))
    probe = random_probe(on)
    if not attention:
        probe = replace(probe, received=torch.zeros_like(probe.received))
    return Learned(probe, model_identity(on), splits, budgets, longest=100, delay=delay, attention=attention)
