"""One layer of a decode cache: new tokens are attended with what is held, and then room is made for them.

Two ways through. *One token into full slots*: it overwrites the next of a queue of victims, and attention runs over all
slots without a mask; the queue is chosen every ``interval`` tokens, and until a victim's turn comes it is still read.
What the policy remembers of such a token can wait till the next ranking, if nobody asks for it before: many tokens at
once cost little more than one. *Anything else*: the tokens go behind those held; if they are too many, the best are
kept once all have been attended.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.clock import Step
from kvpredict.llm.decode.policy import HIDDEN, QUERY, WEIGHTS, Arrival, Held
from kvpredict.llm.decode.slots import Slots

__all__ = ["QUERIES", "DecodeLayer"]

QUERIES = 256  # queries whose attention weights are in memory at once
LOWEST, HIGHEST = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max


class DecodeLayer(CacheLayerMixin):
    """A layer's slots and what happens to them.

    Parameters
    ----------
    owner : DecodeCache
    index : int
        Which layer of the model.
    slots : list of int
        Slots of each KV head.
    window : int, optional
        Tokens that the layer's sliding window reaches back.
    """

    supports_early_init = False

    def __init__(self, owner: Any, index: int, slots: list[int], window: int | None) -> None:
        super().__init__()
        self.owner, self.index, self.window = owner, index, window
        self.is_sliding = window is not None
        self.hidden: Tensor | None = None  # of the forward that is going on
        self.waiting: list[Arrival] = []  # single tokens in slots whose memos are still to be asked for
        self.awaited = False
        self.slots_of = slots
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        sizes = sorted(set(self.slots_of))
        self.groups = [Slots(self.index, [h for h, n in enumerate(self.slots_of) if n == size], size) for size in sizes]
        together = [h for g in self.groups for h in g.names]
        # Where each head is among the groups' outputs; None when they come in order.
        self.order = None if together == sorted(together) else [together.index(h) for h in range(len(together))]
        self.is_initialized = self.awaited = False
        self.waiting.clear()

    # --- what transformers asks of a layer ---

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers."""
        if key_states.shape[1] != len(self.slots_of):
            raise KvpredictError(
                f"layer {self.index} has {key_states.shape[1]} KV heads, the cache was made for {len(self.slots_of)}"
            )
        self.batch_size = key_states.shape[0]
        for group in self.groups:
            group.allocate(key_states, value_states, self.owner.policy.columns)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the new tokens as they are: they are stored when the attention of this layer is computed."""
        if self.hidden is None or self.awaited:
            raise KvpredictError(
                "the cache's attention is not in the model: call cache.attach(model) on the model that runs"
            )
        if self.owner.clock.layer != self.index:
            raise KvpredictError("a forward pass broke off between two layers of the cache: call cache.reset()")
        if key_states.requires_grad:
            raise KvpredictError("DecodeCache is for inference: run the model under torch.no_grad()")
        if self.is_initialized and key_states.shape[0] != self.batch_size:
            raise KvpredictError(
                f"the cache holds a batch of {self.batch_size} sequences and was given {key_states.shape[0]}: "
                "call cache.reset() for others, or cache.batch_repeat_interleave(n) to go on with n answers to each"
            )
        self.awaited = True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Return tokens seen, kept or not: from it the model takes positions."""
        return int(self.owner.clock.seen)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Ask for the part of the mask that concerns the new tokens: it tells which are padding."""
        return query_length, self.get_seq_length()

    def get_max_length(self) -> int:
        """Return -1: sequences may grow without end."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse."""
        raise KvpredictError("DecodeCache cannot take tokens back (crop): what was evicted for them is gone")

    def activate_past_recording(self) -> None:
        """Refuse."""
        raise KvpredictError("DecodeCache does not do assisted decoding: rejected tokens cannot be taken back")

    def offload(self) -> None:
        """Refuse."""
        raise KvpredictError("DecodeCache does not offload: lower budget_tokens instead")

    # --- attention ---

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        """Attend and store new tokens; return ``[B, T, heads, D]``.

        ``query`` is [B, heads, T, D], ``key`` and ``value`` [B, KV heads, T, D], ``mask`` the model's for new tokens.
        """
        if not self.awaited:
            raise KvpredictError(f"DecodeCache cannot serve {type(module).__name__}: it attends twice in a layer")
        self.awaited = False
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        clock = self.owner.clock
        step: Step = clock.step if self.index else clock.advance(key, mask, self.window, self.owner.evicts_now)
        clock.layer = None  # until this one is through
        out = self._through(module, query, key, value, step, scaling)
        clock.layer = (self.index + 1) % len(self.owner.layers)
        return out

    def _through(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, step: Step, scaling: float | None
    ) -> Tensor:
        owner, policy = self.owner, self.owner.policy
        heads = key.shape[1]
        each = query.shape[1] // heads
        arrival = Arrival(
            self.index,
            key,
            value,
            step.position,
            self.hidden if HIDDEN in policy.needs else None,
            query.unflatten(1, (heads, each)) if QUERY in policy.needs else None,
        )
        waits = owner.defers and key.shape[2] == 1 and step.evicts and not torch.compiler.is_compiling()
        waits = waits and all(g.count == g.size for g in self.groups)
        if not (waits and all(g.left for g in self.groups)):
            self.settle()
        memo = None
        if waits:
            self.waiting.append(arrival)
        else:
            memo = owner.timed(policy.arrive, arrival)
        if len(self.groups) == 1:
            return self._attend(self.groups[0], module, query, key, value, memo, step, scaling)
        queries = query.unflatten(1, (heads, each))
        out = []
        for group in self.groups:
            h = group.heads
            mine = queries[:, h].flatten(1, 2)
            noted = None if memo is None else memo[:, h]
            out.append(self._attend(group, module, mine, key[:, h], value[:, h], noted, step, scaling))
        whole = torch.cat(out, 2)  # [B, T, heads, D], in the groups' order
        if self.order is None:
            return whole
        return whole.unflatten(2, (heads, each))[:, :, self.order].flatten(2, 3)

    def _attend(
        self, group: Slots, module: Any, query: Tensor, key: Tensor, value: Tensor, memo: Tensor | None,
        step: Step, scaling: float | None,
    ) -> Tensor:  # fmt: skip
        fresh = key.shape[2]
        if not step.evicts:
            group.reserve(fresh)
        if group.count + fresh <= group.size:
            assert memo is not None
            group.append(key, value, step.position, memo)
            return self._see(group, module, query, step, scaling)
        if fresh == 1 and group.count == group.size:
            if group.left == 0:
                group.choose(self.owner.timed(self._victims, group, step))
            group.overwrite(key, value, step.position, memo)
            return self._see(group, module, query, step, scaling)
        assert memo is not None
        both = group.joined(key, value, step.position, memo)
        out = self._see(both, module, query, step, scaling)
        group.keep(both, self.owner.timed(self._best, both, group.size, step))
        self.owner.note(both.nbytes)
        return out

    def settle(self) -> None:
        """Ask the policy for the memos of the tokens that wait."""
        if not self.waiting:
            return
        first, waiting = self.waiting[0], self.waiting
        tokens = Arrival(
            first.layer,
            torch.cat([w.key for w in waiting], 2),
            torch.cat([w.value for w in waiting], 2),
            torch.cat([w.position for w in waiting], 1),
            None if first.hidden is None else torch.cat([w.hidden for w in waiting if w.hidden is not None], 1),
        )
        owner, policy = self.owner, self.owner.policy
        memo = owner.timed(policy.arrive, tokens)  # [B, H, waiting, columns]
        for group in self.groups:
            group.note(memo[:, group.heads])
            if group.paid:
                owner.timed(policy.attend, group.held(waiting[-1].position[:, -1] + 1), torch.cat(group.paid, 3))
                group.paid = []
        self.waiting = []

    def _see(self, slots: Slots, module: Any, query: Tensor, step: Step, scaling: float | None) -> Tensor:
        """Return what the queries ``[B, h * G, T, D]`` of the newest tokens read, ``[B, T, h * G, D]``."""
        fresh, n = step.position.shape[1], slots.count
        empty = step.fewest < n  # some sequence is shorter: columns without a token
        window = self.window if self.window is not None and step.seen > self.window else None
        plain = not empty and window is None
        policy = self.owner.policy
        # After the one eviction nothing is ranked any more, so nobody asks for weights; a recorder always does.
        if WEIGHTS in policy.needs and (step.evicts or not policy.evicts):
            return self._weigh(
                slots, query, step, scaling, None if plain and fresh == 1 else _mask(slots, step, window)
            )
        held = slots.held(step.now)
        causal = plain and fresh == n and fresh > 1
        mask = None if plain and (fresh == 1 or causal) else _mask(slots, step, window, shared=slots.count == step.seen)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], 1)
        out, _ = sdpa_attention_forward(module, query, held.key, held.value, mask, 0.0, scaling, is_causal=causal)
        return out

    def _weigh(self, slots: Slots, query: Tensor, step: Step, scaling: float | None, mask: Tensor | None) -> Tensor:
        """The same with the weights for the policy, in blocks of queries; the odd block is the first."""
        policy, n = self.owner.policy, slots.count
        key, value = slots.keys[:, :, :n], slots.values[:, :, :n]
        heads = key.shape[1]
        fresh = query.shape[2]
        each = query.shape[1] // heads
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        queries = query.unflatten(1, (heads, each))  # [B, h, G, T, D]
        out = []
        first = fresh % QUERIES or QUERIES
        for stop in range(first, fresh + 1, QUERIES):
            start = max(0, stop - QUERIES) if stop > first else 0
            block = queries[:, :, :, start:stop].flatten(2, 3)  # [B, h, G * block, D]
            logits = (block @ key.transpose(2, 3)).float().mul_(scale).unflatten(2, (each, stop - start))
            if mask is not None:
                logits.masked_fill_(~mask[:, :, None, start:stop], -torch.inf)
            weights = logits.softmax(-1)  # [B, h, G, block, columns]
            if step.fewest < n:
                weights = weights.nan_to_num_(0.0)  # padding sees nothing
            read = weights.flatten(2, 3).to(value.dtype) @ value
            out.append(read.unflatten(2, (each, stop - start)))
            if self.waiting and policy.patient:
                slots.paid.append(weights)
            else:
                self.owner.timed(policy.attend, slots.held(step.position[:, stop - 1] + 1), weights)
        return torch.cat(out, 3).flatten(1, 2).transpose(1, 2)  # [B, T, h * G, D]

    # --- who goes ---

    def _ranked(self, held: Held, size: int, reader: Tensor) -> Tensor:
        """Return scores with what must stay at the top and what cannot be read any more at the bottom.

        ``reader`` [B] is the position of the next query.
        """
        owner = self.owner
        score = owner.policy.score(held).float().nan_to_num(nan=LOWEST, posinf=HIGHEST, neginf=LOWEST)
        now = held.now[:, None, None]
        stays = (held.position < owner.sinks) | (held.position >= now - owner.recent_of(size))
        score = score.masked_fill(stays, torch.inf)
        gone = held.position < 0
        if self.window is not None:
            gone = gone | (held.position <= reader[:, None, None] - self.window)
        return score.masked_fill(gone, -torch.inf)

    def _victims(self, group: Slots, step: Step) -> Tensor:
        ranked = self._ranked(group.held(step.now), group.size, step.now - 1)
        return ranked.topk(self.owner.interval, dim=-1, largest=False).indices

    def _best(self, both: Slots, size: int, step: Step) -> Tensor:
        ranked = self._ranked(both.held(step.now), size, step.now)
        return ranked.topk(size, dim=-1, sorted=False).indices.sort(-1).values


def _mask(slots: Slots, step: Step, window: int | None, *, shared: bool = False) -> Tensor:
    """Return which columns each of the newest tokens sees, bool [B or 1, h or 1, T, columns].

    ``shared``: the columns are the same tokens in every head.
    """
    fresh, n = step.position.shape[1], slots.count
    if step.fewest >= n and window is None:
        seen = torch.ones(fresh, n, dtype=torch.bool, device=step.position.device)
        return seen.tril(n - fresh)[None, None]
    at = slots.position[:, :1] if shared else slots.position
    at, query = at[:, :, None, :n], step.position[:, None, :, None]
    seen = (at >= 0) & (at <= query)
    return seen if window is None else seen & (at > query - window)
