"""DecodeCache: a Hugging Face causal LM's KV cache with a token budget.

It takes the place of transformers' own cache in ``generate`` and in a plain forward loop. Each KV head of each layer
has a fixed number of slots; a policy ranks the tokens, sinks and recent ones stay, and a victim's slot is overwritten.
Keys are stored as the model made them, with their position's rotation, and the cache tells the model how many tokens
it has *seen*: so positions stay right whatever has been evicted.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.llm.decode.budgets import allocate
from kvpredict.llm.decode.policies import decode_policy, decode_policy_names
from kvpredict.llm.decode.policy import QUERY, DecodePolicy

try:
    import torch
    from transformers.cache_utils import Cache

    from kvpredict.llm.decode.attention import attach
    from kvpredict.llm.decode.clock import Clock
    from kvpredict.llm.decode.layer import DecodeLayer
except ImportError as missing:
    raise MissingExtra(
        f'DecodeCache needs torch and transformers: pip install "kvpredict[llm]" ({missing})'
    ) from missing

__all__ = ["DecodeCache", "check_whole", "find_policy"]

WHEN = ("steps", "prefill")
IDS = (torch.int64, torch.int32)  # what embeddings take


def check_whole(name: str, value: Any, low: int) -> None:
    """Raise ``KvpredictError`` unless ``value`` is an integer of at least ``low``; NumPy's are, booleans are not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise KvpredictError(f"{name} must be a whole number of at least {low}, got {value!r}")


def find_policy(policy: str | Path | DecodePolicy) -> DecodePolicy:
    """Return a policy given as such, by name, or by what ``load_policy`` takes: a folder or an MLflow URI."""
    from kvpredict.load import policy_of_kind

    return policy_of_kind(policy, DecodePolicy, "decode policy", decode_policy_names(), decode_policy)


class DecodeCache(Cache):
    """A KV cache that keeps ``budget_tokens`` tokens a head, on average, of each sequence.

    Parameters
    ----------
    budget_tokens : int
        Slots for each layer and KV head on average; none is used beyond it. Layers with a sliding window have no more
        than the window and ``interval`` slots.
    policy : str, path or DecodePolicy, default "h2o"
        A name, a folder or MLflow URI of a saved policy, or a policy.
    model : transformers.PreTrainedModel, optional
        The model to serve; default: given later to ``attach``.
    sinks : int, default 4
        First tokens of a sequence that are always kept.
    recent : int or float, optional
        Last tokens that are always kept; below 1, a share of each head's slots. Default: the policy's, most often 32.
    split : {"equal", "pyramid"} or array [layers, heads], optional
        How the budget is split. Default: as the policy was trained, else equal.
    when : {"steps", "prefill"}, default "steps"
        "steps" holds the budget at all times. "prefill" evicts after the prompt, and keeps every token that follows.
    interval : int, default 16
        Tokens are ranked every so many steps; the worst so many then wait to be overwritten, and are read until they
        are.

    Raises
    ------
    KvpredictError
        On a budget below what is always kept, a model that cannot be served, a policy made for another model, or
        arguments of a wrong type.

    Notes
    -----
    A prompt longer than the budget goes in one piece through ``generate``, where each layer in turn holds the whole
    prompt for a moment; ``prefill`` takes it in chunks instead. Batches are padded on the left. Beam search works.
    A token whose score is NaN, as by NaN in its key, goes first. Assisted decoding and ``crop`` are refused. After an
    error in the middle of a forward pass call ``reset``.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2, eos_token_id=None)).eval()
    >>> cache = DecodeCache(64, "tova", model=model)
    >>> out = model.generate(torch.ones(1, 100, dtype=torch.long), past_key_values=cache, max_new_tokens=8)
    >>> cache.get_seq_length(), int(cache.slots.max()), cache.nbytes == 2 * 2 * 2 * 64 * 8 * 4
    (107, 64, True)
    """

    layers: list[DecodeLayer]  # type: ignore[assignment]

    def __init__(
        self,
        budget_tokens: int,
        policy: str | Path | DecodePolicy = "h2o",
        *,
        model: Any = None,
        sinks: int = 4,
        recent: int | float | None = None,
        split: Any = None,
        when: str = "steps",
        interval: int = 16,
    ) -> None:
        super().__init__(layers=[])
        self.policy = find_policy(policy)
        for name, value, low in (("budget_tokens", budget_tokens, 1), ("sinks", sinks, 0), ("interval", interval, 1)):
            check_whole(name, value, low)
        recent = self.policy.recent if recent is None else recent
        number = isinstance(recent, int | float | np.integer | np.floating) and not isinstance(recent, bool)
        if not number or not 0 <= recent < float("inf"):
            raise KvpredictError(f"recent must be a number of tokens, or a share of the slots below 1, got {recent!r}")
        if recent >= 1 and recent != int(recent):
            raise KvpredictError(f"recent must be a whole number of tokens or a share below 1, got {recent!r}")
        if when not in WHEN:
            raise KvpredictError(f"when must be one of {', '.join(WHEN)}, got {when!r}")
        self.budget_tokens, self.sinks, self.recent, self.split = int(budget_tokens), int(sinks), recent, split
        self.when, self.interval = when, int(interval)
        self.policy_seconds: float | None = None  # set to 0.0 to have the policy's time added up (host clock)
        self.slots = np.zeros((0, 0), np.int64)  # [layers, KV heads]
        self.clock = Clock()
        # Whether memos of single tokens may wait: nothing but ranking reads them.
        self.defers = self.policy.columns > 0 and QUERY not in self.policy.needs
        self._model = ""  # the name of the model that it serves
        self._chunks = False
        self._peak = 0
        if model is not None:
            self.attach(model)

    def attach(self, model: Any) -> "DecodeCache":
        """Serve ``model``: route its attention through decode caches and split the budget over its heads.

        The model's attention implementation changes its name; with other caches it computes what it did before.
        """
        if self.clock.seen:
            raise KvpredictError("the cache holds tokens already: call reset() before it serves another model")
        self._model, windows = attach(model)
        self.policy.check(model)
        config = model.config.get_text_config(decoder=True)
        layers = len(windows)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        split = self.split
        if split is None:
            split = self.policy.shares(layers, heads)
        split = "equal" if split is None else split
        if self.policy.evicts:
            self.slots = allocate(self.budget_tokens, split, layers, heads, self._least())
        else:
            self.slots = np.full((layers, heads), self.budget_tokens)
        for layer, window in enumerate(windows):  # what a sliding window has left behind is of no use
            if window is not None and self.policy.evicts:
                self.slots[layer] = np.minimum(self.slots[layer], window + self._waiting)
        self.layers = [DecodeLayer(self, i, self.slots[i].tolist(), windows[i]) for i in range(layers)]
        return self

    @property
    def _waiting(self) -> int:
        """Slots of tokens that wait to be overwritten until the next ranking."""
        return self.interval if self.when == "steps" else 0

    def _least(self) -> int:
        """Return the slots that every head must have."""
        waiting = self._waiting
        least = self.sinks + (int(self.recent) if self.recent >= 1 else 1) + waiting
        if least > self.budget_tokens:
            raise KvpredictError(
                f"a budget of {self.budget_tokens} tokens is below the {least} slots that are spoken for: {self.sinks} "
                f"sinks, {least - self.sinks - waiting} recent, {waiting} to be overwritten until the next ranking "
                "(interval). Raise budget_tokens or lower these"
            )
        return least

    def recent_of(self, slots: int) -> int:
        """Return how many recent tokens a head with so many slots keeps."""
        if self.recent >= 1 or self.recent == 0:
            return int(self.recent)
        return max(1, min(int(self.recent * slots), slots - self.sinks - self._waiting))

    def prefill(self, model: Any, input_ids: Any, attention_mask: Any = None, *, chunk: int = 512) -> None:
        """Take in a prompt in chunks, all but its last token, so that no more than budget and chunk are ever held.

        Parameters
        ----------
        model : the attached model
        input_ids : integer tensor [batch, tokens]
        attention_mask : tensor [batch, tokens], optional
            0 for padding, on the left.
        chunk : int, default 512
            Tokens at a time.

        Notes
        -----
        Afterwards ``model.generate(input_ids, attention_mask=attention_mask, past_key_values=cache)`` goes on with the
        last token.
        """
        check_whole("chunk", chunk, 1)
        if self.clock.seen:
            raise KvpredictError("prefill begins with an empty cache: call reset()")
        shape = tuple(getattr(input_ids, "shape", ()))
        kind = getattr(input_ids, "dtype", "")
        if not isinstance(input_ids, torch.Tensor) or kind not in IDS or len(shape) != 2 or 0 in shape:
            got = f"{type(input_ids).__name__} {shape} {kind}".rstrip()
            raise KvpredictError(f"input_ids must be a tensor [batch, tokens] of whole numbers, got {got}")
        if attention_mask is not None and tuple(getattr(attention_mask, "shape", ())) != shape:
            raise KvpredictError(f"attention_mask must have the shape of input_ids, {shape}")
        last = input_ids.shape[1] - 1
        position = None
        if attention_mask is not None:
            position = (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)
        self._chunks = True
        try:
            with torch.no_grad():
                for start in range(0, last, chunk):
                    part = slice(start, min(start + chunk, last))
                    given: dict[str, Any] = {}
                    if position is not None:
                        given = {"attention_mask": attention_mask[:, : part.stop], "position_ids": position[:, part]}
                    model(input_ids[:, part], past_key_values=self, use_cache=True, logits_to_keep=1, **given)
        finally:
            self._chunks = False

    # --- what it holds ---

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are held, or that there is room for."""
        return sum(g.nbytes for layer in self.layers if layer.is_initialized for g in layer.groups)

    @property
    def peak_nbytes(self) -> int:
        """The most bytes of keys and values at any moment: those held, and one head group's while it is over budget."""
        return max(self._peak, self.nbytes)

    @property
    def side_nbytes(self) -> int:
        """Bytes of what is kept beside keys and values: positions and the policy's memos."""
        groups = [g for layer in self.layers if layer.is_initialized for g in layer.groups]
        return sum(g.position.nbytes + g.memo.nbytes for g in groups)

    def kept(self, sequence: int = 0) -> list[list[Any]]:
        """Return the positions of the tokens that are held, sorted int64 arrays, by layer and KV head."""
        out = []
        for layer in self.layers:
            heads: list[Any] = [None] * len(layer.slots_of)
            for group in layer.groups if layer.is_initialized else []:
                for row, head in enumerate(group.names):
                    at = group.position[sequence, row, : group.count]
                    heads[head] = np.sort(at[at >= 0].cpu().numpy().astype(np.int64))
            out.append([np.empty(0, np.int64) if h is None else h for h in heads])
        return out

    # --- what layers ask ---

    def layer_of(self, model: str, index: int) -> DecodeLayer:
        """Return a layer; the hook on the model's attention knows a decode cache by this method."""
        layers = self._attached()
        if model != self._model:
            raise KvpredictError(
                "the cache serves another model than the one that runs: call cache.reset() and cache.attach(model)"
            )
        return layers[index]

    def _attached(self) -> list[DecodeLayer]:
        if not self.layers:
            raise KvpredictError(
                "the cache serves no model yet: give DecodeCache(…, model=model), or call attach(model)"
            )
        return self.layers

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Hand new tokens to a layer."""
        return self._attached()[layer_idx].update(key_states, value_states)

    @property
    def evicts_now(self) -> bool:
        """Whether the tokens of this forward pass may push others out."""
        return self.policy.evicts and (self.when == "steps" or self._chunks or self.clock.seen == 0)

    def timed(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the policy; add up the time if ``policy_seconds`` is set."""
        if self.policy_seconds is None:
            return call(*args)
        started = time.perf_counter()
        out = call(*args)
        self.policy_seconds += time.perf_counter() - started
        return out

    def note(self, working: int) -> None:
        """Note the bytes of a working copy for ``peak_nbytes``."""
        self._peak = max(self._peak, self.nbytes + working)

    # --- batches ---

    def reset(self) -> None:
        """Forget all tokens."""
        self.clock = Clock()
        for layer in self.layers:
            layer.reset()

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the sequences ``beam_idx``, in that order (beam search)."""
        self._rows(beam_idx)

    def batch_select_indices(self, indices: Any) -> None:
        """Keep the sequences ``indices``."""
        batch = torch.arange(len(self.clock.now)) if self.clock.now is not None else torch.empty(0, dtype=torch.long)
        self._rows(batch[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence ``repeats`` times."""
        check_whole("repeats", repeats, 1)
        if self.clock.now is not None:
            self._rows(torch.arange(len(self.clock.now)).repeat_interleave(repeats))

    def _rows(self, index: Any) -> None:
        self.clock.rows(index)
        for layer in self.layers:
            if layer.is_initialized:
                layer.settle()
                for group in layer.groups:
                    group.rows(index)
                layer.batch_size = len(index)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse."""
        self._attached()[0].crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Refuse."""
        self._attached()[0].activate_past_recording()
