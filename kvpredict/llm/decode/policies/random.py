"""Random: every token of a head is worth the same number, drawn once from seed, layer, head and position.

A hash and not a generator: so what is kept depends neither on the other sequences of a batch nor on how a prompt was
cut into chunks. The number a policy has to beat to have learned anything.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import Arrival, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(DecodePolicy):
    """Tokens at random.

    Parameters
    ----------
    seed : int, default 0
    """

    name = "random"

    seed: int = 0

    def arrive(self, new: Arrival) -> "Tensor":
        import torch

        heads = torch.arange(new.key.shape[1], device=new.key.device)
        x = new.position[:, None, :].long() + (heads[None, :, None] << 24) + (new.layer << 32) + (self.seed << 40)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64))):
            # splitmix64; int64 wraps around, and the mask makes its shift a logical one
            x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return ((x >> 40) & 0xFFFFFF).float().unsqueeze(-1)  # 24 bits: whole numbers that float32 holds

    def score(self, held: Held) -> "Tensor":
        return held.memo[..., 0]
