"""Random: every token of a head is worth the same number, drawn once from seed, layer, head and position.

A hash and not a generator: so what is kept depends neither on the other sequences of a batch nor on how a prompt was
cut into chunks. The number a policy has to beat to have learned anything.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kvpredict.llm.decode.policy import Arrival, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Random"]

ODD, MIX = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9  # odd, with bits all over, as in splitmix64
SALT = (1_000_003, 998_244_353, 2_147_483_659)


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
        salt = _salts(new.key.shape[1], new.layer, self.seed, new.key.device)
        x = new.position[:, None].long() * ODD + salt  # [B, H, T]; int64 wraps around
        x = (x ^ (x >> 29)) * MIX
        return (x >> 40).bitwise_and(0xFFFFFF).float().unsqueeze(-1)  # 24 bits: whole numbers that float32 holds

    def score(self, held: Held) -> "Tensor":
        return held.memo[..., 0]


@cache
def _salts(heads: int, layer: int, seed: int, device: Any) -> "Tensor":
    """Return a number for each head, [heads, 1]."""
    import torch

    return torch.arange(heads, device=device)[:, None] * SALT[0] + (layer * SALT[1] + seed * SALT[2])
