"""Full: keep everything. The measure of all others; the budget is not looked at and memory grows with the sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(DecodePolicy):
    """No eviction."""

    name = "full"
    columns = 0
    evicts = False

    def score(self, held: Held) -> "Tensor":
        return held.position.float()
