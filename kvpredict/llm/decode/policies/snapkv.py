"""SnapKV: a token is worth the attention of the last queries to it and to its neighbours in the text.

What the end of a prompt looks at is what the answer will look at; pooling along the text keeps whole passages instead
of their most striking words. SnapKV, arXiv:2404.14469. Beyond the paper, which evicts once after the prompt: while
tokens come in blocks shorter than the window, the window's sum fades as they come.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.policy import WEIGHTS, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SnapKV"]


@dataclass(frozen=True)
class SnapKV(DecodePolicy):
    """Attention of the last queries, pooled.

    Parameters
    ----------
    window : int, default 32
        Queries that count.
    kernel : int, default 5
        Tokens whose attention is averaged, an odd number.
    """

    name = "snapkv"
    needs = frozenset({WEIGHTS})

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise KvpredictError(f"snapkv: window must be at least 1 and kernel odd, got {self.window}, {self.kernel}")

    def attend(self, held: Held, weights: "Tensor") -> None:
        queries = min(weights.shape[3], self.window)
        held.memo[..., 0] *= 1 - queries / self.window
        held.memo[..., 0] += weights[:, :, :, -queries:].sum((2, 3))

    def score(self, held: Held) -> "Tensor":
        from torch.nn.functional import avg_pool1d

        # Slots are in no order once victims have been overwritten: pooled in the text's order, and put back.
        order = held.position.argsort(-1)
        told = held.memo[..., 0].masked_fill(held.position < 0, 0.0).gather(-1, order)
        pooled = avg_pool1d(told, self.kernel, 1, self.kernel // 2, count_include_pad=False)
        return told.scatter(-1, order, pooled)
