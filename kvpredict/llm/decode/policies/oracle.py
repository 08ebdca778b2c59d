"""The oracle: a token is worth the most attention that any later query of the full model will pay to it.

It reads the text twice, so nobody can serve with it; it shows how much of a policy's loss is a matter of ranking. The
first pass is made by ``record_future``, which keeps everything and notes, for each token and each block of queries, the
highest attention weight. It is an oracle of attention, not of the loss: a policy trained on the loss may beat it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.policy import WEIGHTS, DecodePolicy, Held

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Oracle", "record_future"]


@dataclass(frozen=True)
class Oracle(DecodePolicy):
    """Future attention, as recorded.

    Parameters
    ----------
    table : list of tensors [B, H, tokens, blocks], one a layer
        The highest attention a token gets from each block of queries.
    block : int
        Queries a block.
    """

    name = "oracle"
    columns = 0

    table: Any = field(default=None, metadata={"config": False}, repr=False)
    block: int = 32

    def score(self, held: Held) -> "Tensor":
        if self.table is None:
            raise KvpredictError("the oracle needs its record: Oracle(record_future(model, ids), block)")
        past = self.table[held.layer]
        seen = int(held.now.max()) // self.block  # whole blocks that lie behind; the one begun counts as future
        future = past[..., min(seen, past.shape[-1] - 1) :].amax(-1)[:, held.heads]  # [B, h, tokens]
        return future.gather(-1, held.position.clamp(0, future.shape[-1] - 1).long())

    def check(self, model: Any) -> None:
        if self.table is None:
            raise KvpredictError("the oracle needs its record: Oracle(record_future(model, ids), block)")
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        if len(self.table) != layers:
            raise KvpredictError(f"the oracle was recorded on {len(self.table)} layers, this model has {layers}")


@dataclass(frozen=True)
class _Recorder(DecodePolicy):
    name = "recorder"
    needs = frozenset({WEIGHTS})
    evicts = False
    columns = 0

    block: int
    seen: dict[int, list[Any]]  # by layer, one tensor [B, H, tokens so far] a block

    def attend(self, held: Held, weights: "Tensor") -> None:
        self.seen.setdefault(held.layer, []).append(weights.amax((2, 3)))

    def score(self, held: Held) -> "Tensor":
        return held.position.float()


def record_future(model: Any, input_ids: Any, block: int = 32) -> list[Any]:
    """Read whole sequences with everything kept; return each layer's table of attention, [B, H, tokens, blocks].

    Parameters
    ----------
    model : transformers.PreTrainedModel
    input_ids : integer tensor [B, tokens]
        Sequences of one length, without padding.
    block : int, default 32
        Queries a block: the finest moment at which the oracle can be asked.
    """
    import torch
    from torch.nn.functional import pad

    from kvpredict.llm.decode.cache import DecodeCache

    recorder = _Recorder(block, {})
    cache = DecodeCache(input_ids.shape[1], recorder, model=model)
    with torch.no_grad():
        for start in range(0, input_ids.shape[1], block):
            model(input_ids[:, start : start + block], past_key_values=cache, use_cache=True, logits_to_keep=1)
    tokens = input_ids.shape[1]
    return [
        torch.stack([pad(w, (0, tokens - w.shape[-1])) for w in recorder.seen[layer]], -1)
        for layer in range(len(cache.layers))
    ]
