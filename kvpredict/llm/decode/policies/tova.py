"""TOVA: a token is worth the attention that the last query paid to it.

The cheapest guess at what the next query will look at. "Transformers are Multi-State RNNs", arXiv:2401.06104. There
all heads of a layer decide together; here each KV head does, by the mean of its queries, so that budgets may differ.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import WEIGHTS, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TOVA"]


@dataclass(frozen=True)
class TOVA(DecodePolicy):
    """Attention of the last query."""

    name = "tova"
    needs = frozenset({WEIGHTS})
    recent = 1

    def attend(self, held: Held, weights: "Tensor") -> None:
        held.memo[..., 0] = weights[:, :, :, -1].mean(2)

    def score(self, held: Held) -> "Tensor":
        return held.memo[..., 0]
