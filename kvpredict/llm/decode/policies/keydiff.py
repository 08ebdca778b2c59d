"""KeyDiff: a token is worth how much its key differs from the others'.

Keys that point elsewhere than the mean key are those that some query singles out; no attention weights are needed.
KeyDiff, arXiv:2504.15364: minus the cosine between a key and the mean of the normalised keys held.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KeyDiff"]


@dataclass(frozen=True)
class KeyDiff(DecodePolicy):
    """Keys unlike the others."""

    name = "keydiff"
    columns = 0

    def score(self, held: Held) -> "Tensor":
        from torch.nn.functional import normalize

        there = (held.position >= 0).unsqueeze(-1)
        keys = normalize(held.key.float(), dim=-1).masked_fill(~there, 0.0)  # [B, h, S, D]
        # A key that is no number has no score; the others' are theirs all the same.
        mean = normalize(keys.nan_to_num(0.0).sum(2, keepdim=True), dim=-1)
        return -(keys * mean).sum(-1)
