"""H2O: a token is worth the attention it has received so far, summed over all queries.

A few heavy hitters get most of the attention, and they go on to get it. Half of the slots are for recent tokens, whose
sums have had no time to grow. "H2O: Heavy-Hitter Oracle", arXiv:2306.14048. With grouped queries the sum runs over
the group.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import WEIGHTS, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["H2O"]


@dataclass(frozen=True)
class H2O(DecodePolicy):
    """Heavy hitters and recent tokens."""

    name = "h2o"
    needs = frozenset({WEIGHTS})
    recent = 0.5

    def attend(self, held: Held, weights: "Tensor") -> None:
        held.memo[..., 0] += weights.sum((2, 3))

    def score(self, held: Held) -> "Tensor":
        return held.memo[..., 0]
