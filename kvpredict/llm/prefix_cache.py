"""PrefixCache: prompts that share a prefix skip its prefill.

A paged pool holds the keys and values of full blocks, on the device and in pinned host memory; a ``PrefixIndex``
decides which. ``generate`` runs greedy generation for several requests at once with a Hugging Face causal LM: each
request loads its known prefix, prefills the rest, and decodes; when it ends its blocks are offered to the cache. At
least the last token of a prompt is always computed, because its logits are needed. What a slot holds is opaque, so a
recurrent model's state after each block is cached by prefix in the same way (``states.StateCache``).
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from kvpredict.cache.arguments import whole_number
from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.llm.blocks import block_hashes, token_ids
from kvpredict.llm.hints import hints_of, session_of
from kvpredict.llm.kv_pool import KVPool, torch_module
from kvpredict.llm.layers import attention_windows, last_position, moving_rope
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["Answer", "BlockStore", "PrefixCache"]


class BlockStore:
    """A pool under an index: which block lies in which slot, and what moves when the index changes its mind.

    A policy may make room for blocks when their request arrives; they have a slot once their tensors are there.
    """

    def __init__(self, index: PrefixIndex, pool: KVPool) -> None:
        self.index, self.pool = index, pool
        self.slot: tuple[dict[int, int], dict[int, int]] = ({}, {})  # by node: on the device, in the host tier

    def settle(self, fresh: Mapping[int, Any] | None = None) -> None:
        """Make the slots agree with the index; ``fresh`` holds the tensors of nodes that may have been stored."""
        fresh = fresh or {}
        resident = self.index.pool.resident
        two = self.index.tiers == 2
        moved = [*self.index.gone(), *fresh]
        arriving: dict[int, Any] = {}
        refused = []  # by the device, and taken by the host tier
        for node in dict.fromkeys(moved):  # what comes up is lifted out first, so that its place is free
            if resident[node, 0] and node not in self.slot[0]:
                if node in self.slot[1]:
                    arriving[node] = self.pool.fetch(self.slot[1].pop(node))
                elif node in fresh:
                    arriving[node] = fresh[node]
            elif node in self.slot[1]:
                if not (two and resident[node, 1]):
                    self.pool.give(1, self.slot[1].pop(node))
            elif two and resident[node, 1] and node in fresh and node not in self.slot[0]:
                refused.append(node)
        for node in dict.fromkeys(moved):
            if node in self.slot[0] and not resident[node, 0]:
                slot = self.slot[0].pop(node)
                if two and resident[node, 1]:
                    self.slot[1][node] = self.pool.demote(slot)
                else:
                    self.pool.give(0, slot)
        for node, values in arriving.items():
            self.slot[0][node] = self.pool.take(0)
            self.pool.write(0, self.slot[0][node], values)
        for node in refused:
            self.slot[1][node] = self.pool.take(1)
            self.pool.write(1, self.slot[1][node], fresh[node])

    def found(self, ticket: int, most: int) -> list[int]:
        """Return the nodes of a request's first blocks, at most so many, whose tensors the device holds."""
        r = self.index.requests
        start = int(r.start[ticket])
        nodes = r.node[start : start + most].tolist()
        return list(takewhile(self.slot[0].__contains__, nodes))

    def cancel(self, ticket: int) -> None:
        """End a request that has failed, and give back the room that was made for it."""
        r, pool = self.index.requests, self.index.pool
        nodes = r.node[int(r.start[ticket]) : int(r.start[ticket] + r.prompt[ticket])].tolist()
        self.index.cancel(ticket)
        for node in reversed(nodes):  # leaves first
            empty = node not in self.slot[0] and pool.running[node] == 0 and pool.children[node, 0] == 0
            if pool.resident[node, 0] and empty:
                self.index.drop(int(self.index.hash[node]))

    def read(self, nodes: Sequence[int]) -> list[Any]:
        """Return the tensors of these nodes, which the device holds."""
        return self.pool.read([self.slot[0][node] for node in nodes])


@dataclass
class Answer:
    """What ``PrefixCache.generate`` returns for one prompt.

    ``tokens``: generated ids. ``cached_tokens``: prompt tokens whose prefill was skipped. ``logits``: of each generated
    token if asked for, ``[generated, vocabulary]``.
    """

    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    logits: Any = None


@dataclass
class _Request:
    prompt: list[int]
    ticket: int
    cache: Any  # the model's own cache object
    known: int
    session: int | None
    output: list[int] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)


class PrefixCache:
    """A cache of prompt prefixes for a causal language model, which threads may share: they take turns at ``generate``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal LM with full attention in every layer; its device and dtype are the pool's.
    capacity : int
        Blocks on the device.
    host_capacity : int, default 0
        Blocks in host memory, pinned where the device is CUDA.
    block_size : int, default 16
        Tokens a block.
    policy : str, path or PrefixPolicy, default "lru"
        A name, or the folder or MLflow URI of a saved policy.
    requests : int, default 64
        Requests in progress at once.
    background : bool, default True
        Whether a learned policy trains on a thread of its own; else the request that ends then waits for it.

    Raises
    ------
    KvpredictError
        On a model whose cache is not one of keys and values for all tokens, or whose keys change as a text grows.
    """

    def __init__(
        self,
        model: Any,
        capacity: int,
        *,
        host_capacity: int = 0,
        block_size: int = 16,
        policy: str | Path | PrefixPolicy = "lru",
        requests: int = 64,
        background: bool = True,
    ) -> None:
        self.block_size = whole_number("block_size", block_size)
        self._torch = torch_module()
        try:
            from transformers import DynamicCache
        except ImportError as error:
            raise MissingExtra(f'PrefixCache needs transformers: pip install "kvpredict[llm]" ({error})') from error
        self._new_cache = DynamicCache
        if any(window is not None for window in attention_windows(model, "PrefixCache")):
            raise KvpredictError("PrefixCache needs full attention in every layer, this model has sliding windows")
        if rope := moving_rope(model):
            raise KvpredictError(
                f"PrefixCache cannot serve a model whose rotation of positions is {rope!r}: it changes with the length "
                "of the text, and with it the keys of a prefix"
            )
        if model.training:
            raise KvpredictError("the model is in training mode, in which answers are random: call model.eval()")
        config = model.config.get_text_config(decoder=True)
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)
        self._longest = last_position(model)
        self.model = model
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = config.num_hidden_layers
        shape = (2, heads, block_size, width)  # keys and values of one layer
        self.index = PrefixIndex(
            capacity, policy, host_capacity=host_capacity, requests=requests, background=background
        )
        sizes = self.index.capacity, self.index.host_capacity
        pool = KVPool([shape] * self._layers, *sizes, model.dtype, model.device)
        self.store = BlockStore(self.index, pool)
        self.prompt_tokens = self.cached_tokens = 0
        self._lock = threading.RLock()

    @property
    def bytes(self) -> int:
        """Return the memory of the pool."""
        return self.store.pool.bytes

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 32,
        *,
        eos: int | None = None,
        sessions: Sequence[int | str | None] | None = None,
        params: Sequence[Mapping[str, Any] | None] | None = None,
        keep_logits: bool = False,
    ) -> list[Answer]:
        """Generate greedily for several prompts at once.

        Parameters
        ----------
        prompts : sequence of sequences of int
            Token ids, one at least in each.
        max_new_tokens : int, default 32
        eos : int, optional
            Token that ends an answer.
        sessions : sequence of int or str, optional
            Default: those that ``params`` name.
        params : sequence of mappings, optional
            Hints of each request, as in vLLM's ``kv_transfer_params`` (see ``hints.hints_of``).
        keep_logits : bool, default False

        Returns
        -------
        One ``Answer`` a prompt, in order.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
        eos = None if eos is None else whole_number("eos", eos, least=None)
        if not isinstance(prompts, Sequence) and not hasattr(prompts, "__array__"):
            raise KvpredictError(f"prompts must be a list of prompts, got {type(prompts).__name__}")
        checked = [self._checked(k, prompt, max_new_tokens) for k, prompt in enumerate(prompts)]
        for name, given in (("sessions", sessions), ("params", params)):
            if given is not None and (
                isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(prompts)
            ):
                raise KvpredictError(f"{name} must have an entry for each of {len(prompts)} prompts, got {given!r:.60}")
        with self._lock, self._torch.inference_mode():
            running: list[_Request] = []
            try:
                for k, prompt in enumerate(checked):
                    free = params[k] if params is not None else None
                    session = session_of(free if sessions is None else {"session": sessions[k]})
                    request = self._start(prompt, session, hints_of(free))
                    running.append(request)
                    self._step(request, prompt[request.known :], keep_logits)
                    self._offer(request)  # so that the next prompt finds it
                active = running
                for _ in range(max_new_tokens - 1):
                    active = [r for r in active if r.output[-1] != eos]
                    for request in active:  # one forward a request: the prompts' lengths differ
                        self._step(request, request.output[-1:], keep_logits)
                finished = list(running)
                answers = []
                while running:
                    self._end(running[0])
                    running.pop(0)
                for r in finished:
                    logits = self._torch.stack(r.logits) if keep_logits else None
                    answers.append(Answer(r.output, len(r.prompt), r.known, logits))
                return answers
            finally:
                for request in running:  # an error on the way: nothing stays pinned
                    self.store.cancel(request.ticket)

    def _checked(self, number: int, prompt: Sequence[int], new: int) -> list[int]:
        """Return a prompt as a list of ints; KvpredictError where the model could not read it."""
        tokens = token_ids(f"prompt {number}", prompt)
        if not tokens:
            raise KvpredictError(f"prompt {number} is empty: generate needs one token at least")
        if not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
            wrong = next(t for t in tokens if not 0 <= t < self._vocabulary)
            raise KvpredictError(f"prompt {number} has the token {wrong}, this model's are 0 to {self._vocabulary - 1}")
        if self._longest is not None and len(tokens) + new - 1 > self._longest:
            raise KvpredictError(
                f"prompt {number} has {len(tokens)} tokens and {new} are to follow, this model's positions end at "
                f"{self._longest}"
            )
        return tokens

    def _start(self, prompt: list[int], session: int | None, hints: Mapping[str, float]) -> _Request:
        blocks = block_hashes(prompt, self.block_size)
        ticket, device, host = self.index.begin(
            blocks.tolist(), len(prompt), session=session, hints=hints, block_size=self.block_size
        )
        self.store.settle()
        # The last token is computed in any case.
        nodes = self.store.found(ticket, min(device + host, (len(prompt) - 1) // self.block_size))
        found = len(nodes)
        cache = self._new_cache(config=self.model.config)
        if found:
            for layer, values in enumerate(self.store.read(nodes)):  # [blocks, 2, H, size, D]
                joined = values.permute(1, 2, 0, 3, 4).reshape(2, 1, values.shape[2], -1, values.shape[4])
                cache.update(joined[0], joined[1], layer)
        self.prompt_tokens += len(prompt)
        self.cached_tokens += found * self.block_size
        return _Request(prompt, ticket, cache, found * self.block_size, session)

    def _step(self, request: _Request, tokens: list[int], keep_logits: bool) -> None:
        ids = self._torch.tensor([tokens], device=self.model.device)
        seen = request.cache.get_seq_length()
        positions = self._torch.arange(seen, seen + len(tokens), device=self.model.device)[None]
        out = self.model(
            input_ids=ids, position_ids=positions, past_key_values=request.cache, use_cache=True, logits_to_keep=1
        )
        last = out.logits[0, -1]
        request.output.append(int(last.argmax()))
        if keep_logits:
            request.logits.append(last.clone())

    def _end(self, request: _Request) -> None:
        """Offer the request's full blocks to the cache."""
        # The last token generated has no keys and values yet.
        tokens = [*request.prompt, *request.output[:-1]]
        blocks = block_hashes(tokens, self.block_size).tolist()
        prompt = len(request.prompt) // self.block_size
        self.index.end(request.ticket, blocks[prompt:], len(request.output))
        self._offer(request)

    def _offer(self, request: _Request) -> None:
        """Store those of the request's blocks that the index has made room for."""
        r = self.index.requests
        nodes = r.node[r.start[request.ticket] : r.stop[request.ticket]].tolist()
        self.store.settle({node: _Lazy(self, request.cache, k) for k, node in enumerate(nodes)})


class _Lazy(Sequence[Any]):
    """The keys and values of one block, cut out of the model's cache only if the block is stored."""

    def __init__(self, owner: PrefixCache, cache: Any, block: int) -> None:
        self._owner, self._cache, self._block = owner, cache, block

    def __len__(self) -> int:
        return self._owner._layers

    def __getitem__(self, layer: Any) -> Any:
        size = self._owner.block_size
        part = slice(self._block * size, (self._block + 1) * size)
        if not 0 <= layer < len(self):
            raise IndexError(layer)
        held = self._cache.layers[layer]
        return self._owner._torch.stack([held.keys[0, :, part], held.values[0, :, part]])  # [2, H, size, D]
