"""Key norm: a token is worth more the shorter its key is.

In trained models short keys go with high attention. "A Simple and Effective L2 Norm-Based Strategy for KV Cache
Compression", arXiv:2406.11430.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import Arrival, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KeyNorm"]


@dataclass(frozen=True)
class KeyNorm(DecodePolicy):
    """Short keys."""

    name = "keynorm"

    def arrive(self, new: Arrival) -> "Tensor":
        return -new.key.float().norm(dim=-1, keepdim=True)

    def score(self, held: Held) -> "Tensor":
        return held.memo[..., 0]
