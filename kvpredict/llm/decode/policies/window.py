"""A window of the latest tokens, beside the sinks that the cache keeps anyway.

Models put much attention on the first tokens whatever they are; without them a plain window breaks down.
StreamingLLM, arXiv:2309.17453. There positions count within the cache; here they stay those of the text.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvpredict.llm.decode.policy import DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(DecodePolicy):
    """The latest tokens."""

    name = "window"
    columns = 0

    def score(self, held: Held) -> "Tensor":
        return held.position.float()
