"""What decides which tokens of a long context stay in the KV cache.

The host (``DecodeCache``) holds, for each layer and each KV head, a buffer of slots. With every token it keeps a few
float32 numbers of the policy's, its *memo*. When a head is over its budget the host asks for scores and keeps the
highest; sinks and recent tokens it keeps without asking. A policy is a frozen dataclass without tensors of a sequence:
all that changes stands in the memos, so one policy serves any number of caches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arrival", "DecodePolicy", "Held"]

# What a policy may need from the host; each costs something, so none is the default.
HIDDEN = "hidden"  # the hidden state that feeds a layer's projections
QUERY = "query"  # the queries of the tokens that arrive
WEIGHTS = "weights"  # attention weights; the host then computes attention itself, in blocks of queries


@dataclass(frozen=True)
class Arrival:
    """Tokens as they enter one layer's cache.

    Shapes: B sequences, H KV heads, G query heads a KV head, T new tokens, D width of a head, E width of the model.
    """

    layer: int
    key: "Tensor"  # [B, H, T, D], after the positions' rotation
    value: "Tensor"  # [B, H, T, D]
    position: "Tensor"  # [B, T] integers, from 0 for each sequence; -1 is padding
    hidden: "Tensor | None" = None  # [B, T, E], with HIDDEN
    query: "Tensor | None" = None  # [B, H, G, T, D], after the rotation, with QUERY


@dataclass(frozen=True)
class Held:
    """What some KV heads of one layer hold, all with as many slots: S of them."""

    layer: int
    heads: "slice | list[int]"  # of the layer's H; a slice where they are neighbours
    memo: "Tensor"  # [B, heads, S, columns]
    key: "Tensor"  # [B, heads, S, D]
    value: "Tensor"  # [B, heads, S, D]
    position: "Tensor"  # [B, heads, S]; -1 is an empty slot
    now: "Tensor"  # [B] tokens of each sequence so far, those of the block that arrives or attends included


class DecodePolicy:
    """The contract. Subclasses are frozen dataclasses of hyper-parameters, one a file of ``decode/policies``."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[int] = 1  # float32 numbers kept with a token
    recent: int | float = 32  # last tokens kept unless the cache is told otherwise; below 1, a share of slots
    # Whether ``attend`` may be asked late, for several queries that came one by one. It then has to leave out what a
    # slot got before its present token came: what queries no later than that token paid.
    patient: ClassVar[bool] = False
    evicts: ClassVar[bool] = True  # False: everything is kept, and the budget is not looked at

    def arrive(self, new: Arrival) -> "Tensor":
        """Return the memos of new tokens, [B, H, T, columns]. Default: zeros.

        The host may ask late, for several tokens together, and then adds what it gets to what ``attend`` has noted.
        """
        batch, heads, tokens, _ = new.key.shape
        return new.key.new_zeros((batch, heads, tokens, self.columns), dtype=_float32())

    def attend(self, held: Held, weights: "Tensor") -> None:
        """Note in ``held.memo`` what a block of queries paid attention to: ``weights`` is [B, heads, G, T, S].

        Called only with WEIGHTS among the needs, after the tokens of the block have been put into slots.
        """

    def score(self, held: Held) -> "Tensor":
        """Return how much each slot matters, [B, heads, S]; the lowest goes first. Empty slots are not looked at."""
        raise NotImplementedError

    def shares(self, layers: int, heads: int) -> "Tensor | None":
        """Return [layers, heads], positive, mean 1: how a budget is split; None leaves it to the caller's ``split``."""
        return None

    def for_budget(self, share: float) -> "DecodePolicy":
        """Return the policy for a budget that is this share of the context expected. Default: itself."""
        return self

    def check(self, model: Any) -> None:
        """Raise KvpredictError if the policy was made for another model than this."""


def _float32() -> Any:
    import torch

    return torch.float32
