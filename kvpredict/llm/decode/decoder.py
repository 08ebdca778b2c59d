"""Decoding one token at a time with nothing but fixed shapes; on CUDA the whole step is a graph.

Once all slots are full a step has two forms: one that ranks first, every ``interval`` steps, and one that does not.
Each is captured the first time it comes after both have run once, and replayed from then on; all that differs between
steps (positions, whose slot is next) stands in tensors. On a CPU, and while slots fill, steps run as they are.
"""

from typing import Any

import torch
from torch import Tensor

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.cache import DecodeCache, check_whole

__all__ = ["Decoder"]


class Decoder:
    """Runs a model's decode steps with a ``DecodeCache``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model that the cache is attached to.
    cache : DecodeCache
        It has read the prompt, all but the last token, unpadded or with every slot full.
    compiled : bool, default False
        Run the model through ``torch.compile``, which fuses its small kernels; needs a compiler.
    """

    def __init__(self, model: Any, cache: DecodeCache, *, compiled: bool = False) -> None:
        if not isinstance(cache, DecodeCache):
            raise KvpredictError(f"Decoder needs a DecodeCache, got {type(cache).__name__}")
        if not cache.clock.seen:
            raise KvpredictError("Decoder goes on after a prompt: give the cache one by prefill first")
        self.cache = cache
        if cache.clock.now is not None and cache.clock.now.device.type == "cuda":
            cache.defers = False  # a graph's tensors are overwritten at its next replay: nothing can wait in them
            for layer in cache.layers:
                layer.settle()
        self._run = torch.compile(model, dynamic=False) if compiled else model
        self._graphs: dict[bool, tuple[Any, Tensor]] = {}  # by whether the step ranks
        self._ids: Tensor | None = None
        self._warm: set[bool] = set()

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Read one token of each sequence, [B, 1]; return the logits of the next, [B, vocabulary]."""
        now = self.cache.clock.now
        shape = tuple(getattr(ids, "shape", ()))
        if now is None or not isinstance(ids, Tensor) or shape != (len(now), 1):
            held = "nothing" if now is None else f"{len(now)} sequences"
            got = f"{type(ids).__name__} {shape}"
            raise KvpredictError(f"ids must be a tensor [sequences, 1]; the cache holds {held}, ids are {got}")
        if ids.device.type != "cuda" or not self._steady():
            return self._forward(ids)
        groups = self._groups()
        if len({g.left for g in groups}) > 1:
            for g in groups:  # in step with each other from here on; ranking early does no harm
                g.left = 0
        ranks = groups[0].left == 0
        if ranks in self._graphs:
            graph, logits = self._graphs[ranks]
        elif self._warm >= {True, False}:
            graph, logits = self._capture(ids, ranks)
        else:
            self._warm.add(ranks)
            return self._forward(ids)
        assert self._ids is not None
        self._ids.copy_(ids)
        graph.replay()
        self.cache.clock.seen += 1
        self.cache.clock.fewest += 1
        for g in groups:
            g.left = (self.cache.interval if ranks else g.left) - 1
        return logits.clone()

    def generate(self, ids: Tensor, new: int) -> Tensor:
        """Decode greedily from the last token of the prompt, [B, 1]; return the new tokens, [B, new]."""
        check_whole("new", new, 1)
        out = []
        for _ in range(new):
            ids = self.step(ids).argmax(-1, keepdim=True)
            out.append(ids)
        return torch.cat(out, 1)

    def _forward(self, ids: Tensor) -> Tensor:
        assert self.cache.clock.now is not None
        position = self.cache.clock.now[:, None].long()
        out: Tensor = self._run(ids, position_ids=position, past_key_values=self.cache, use_cache=True).logits
        return out[:, -1]

    def _groups(self) -> list[Any]:
        return [g for layer in self.cache.layers for g in layer.groups]

    def _steady(self) -> bool:
        """Tell whether all slots of all sequences are full, and stay as many."""
        evicts = self.cache.policy.evicts and self.cache.when == "steps"
        return evicts and all(g.count == g.size <= self.cache.clock.fewest for g in self._groups())

    def _capture(self, ids: Tensor, ranks: bool) -> tuple[Any, Tensor]:
        """Record the step; recording moves the host's counts but not the tensors, so the counts are put back."""
        if self._ids is None:
            self._ids = ids.clone()
        clock, groups = self.cache.clock, self._groups()
        before = clock.seen, clock.fewest, [g.left for g in groups]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            logits = self._forward(self._ids)
        clock.seen, clock.fewest, left = before
        for g, n in zip(groups, left, strict=True):
            g.left = n
        self._graphs[ranks] = graph, logits
        return self._graphs[ranks]
