"""How far each sequence of a batch is: one count for all layers, moved on by the first of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvpredict.core.errors import KvpredictError

__all__ = ["Clock", "Step"]

PAIRS = "DecodeCache takes an attention_mask of [batch, tokens], not one of pairs of tokens"


@dataclass
class Step:
    """The tokens of one forward pass."""

    position: Tensor  # int32 [B, T], from 0 for each sequence; -1 is padding
    now: Tensor  # int32 [B], tokens of each sequence, these included
    seen: int  # columns so far, padding included
    fewest: int  # tokens of the shortest sequence
    evicts: bool  # whether what exceeds the budget goes


class Clock:
    """Counts tokens. Padding stands before a sequence's first token and nowhere else."""

    def __init__(self) -> None:
        self.seen = self.fewest = 0
        self.now: Tensor | None = None
        self.step: Any = None
        self.layer: int | None = 0  # which comes next; None while one is at work, and after an error in it

    def advance(self, key: Tensor, mask: Tensor | None, window: int | None, evicts: bool) -> Step:
        """Count the T new tokens of ``key`` [B, H, T, D].

        ``mask`` is the model's, bool [B, 1, T, T]: a token that does not see itself is padding. ``window``: how far
        back this layer sees.

        Raises
        ------
        KvpredictError
            On a mask of another form, padding after a token, or no mask where the layer's window needs one.
        """
        batch, _, fresh, _ = key.shape
        if self.now is None:
            self.now = torch.zeros(batch, dtype=torch.int32, device=key.device)
        if mask is not None and (mask.shape[-1] != fresh or mask.dtype != torch.bool or len(mask) not in (1, batch)):
            raise KvpredictError(PAIRS)
        if mask is None and window is not None and fresh > window:
            raise KvpredictError(
                f"the model's configuration tells of a sliding window of {window} tokens, but its attention sees all: "
                "DecodeCache cannot serve it unless config.sliding_window is None"
            )
        if mask is None or (fresh == 1 and torch.compiler.is_compiling()):
            new = torch.arange(fresh, dtype=torch.int32, device=key.device)
            position = self.now[:, None] + new  # [B, T]
            self.now.add_(fresh)
            self.fewest += fresh
        else:
            real = mask[:, 0].diagonal(dim1=-2, dim2=-1)  # [B, T]
            before = torch.cat([self.now[:, None] > 0, real[:, :-1]], 1)
            if bool((before & ~real).any()):
                raise KvpredictError("DecodeCache takes padding on the left only: set tokenizer.padding_side='left'")
            position = (self.now[:, None] + real.cumsum(1, dtype=torch.int32) - 1).masked_fill(~real, -1)
            usual = real[:, None, None, :] & torch.ones(fresh, fresh, dtype=torch.bool, device=key.device).tril()
            if window is not None and window < fresh:
                usual = usual & torch.ones(fresh, fresh, dtype=torch.bool, device=key.device).triu(1 - window)
            if bool((mask != usual)[:, 0][real].any()):
                raise KvpredictError(PAIRS)
            self.now.add_(real.sum(1, dtype=torch.int32))
            self.fewest = int(self.now.min())
        self.seen += fresh
        self.step = Step(position, self.now.clone(), self.seen, self.fewest, evicts)
        return self.step

    def rows(self, index: Tensor) -> None:
        """Keep the sequences ``index``, as often as they are named."""
        if self.now is not None:
            self.now = self.now.index_select(0, index.to(self.now.device))
