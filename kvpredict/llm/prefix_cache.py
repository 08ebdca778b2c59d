"""PrefixCache: prompts that share a prefix skip its prefill.

A paged pool holds the keys and values of full blocks, on the device and in pinned host memory; a ``PrefixIndex``
decides which. ``generate`` runs greedy generation for several requests at once with a Hugging Face causal LM: each
request loads its known prefix, prefills the rest, and decodes; when it ends its blocks are offered to the cache. At
least the last token of a prompt is always computed, because its logits are needed. What a slot holds is opaque, so a
recurrent model's state after each block is cached by prefix in the same way (``states.StateCache``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.llm.block_store import BlockStore
from kvpredict.llm.blocks import block_hashes, token_ids
from kvpredict.llm.hints import hints_of, session_of
from kvpredict.llm.kv_layout import cut, forward, joined, new_cache, parts_of
from kvpredict.llm.kv_pool import KVPool, torch_module
from kvpredict.llm.layers import attention_windows, last_position, moving_rope
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["Answer", "PrefixCache"]


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


_Asked = tuple[list[int], int | None, Mapping[str, float]]  # a prompt, its session and its hints


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

    An error in ``generate``, an interrupt included, reaches the caller; what it left half done is forgotten, and the
    rest is served on. An interrupt within the index's own books empties the cache, and a learned policy forgets what it
    has learned since it was given. After a change of the model's weights call ``clear``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal LM with full attention in every layer. A few tokens are read to see how its keys and values lie, and
        that read in pieces they have the logits that they have at once: four short forward passes.
    capacity : int
        Blocks on the device.
    host_capacity : int, default 0
        Blocks in host memory, pinned where the device is CUDA.
    block_size : int, default 16
        Tokens a block.
    policy : str, path or PrefixPolicy, default "lru"
        A name, or the folder or MLflow URI of a saved policy.
    requests : int, default 64
        Requests in progress at once; ``generate`` serves more prompts in turns.
    background : bool, default True
        Whether a learned policy trains on a thread of its own; else the request that ends then waits for it.

    Raises
    ------
    KvpredictError
        On a model whose cache is not one of keys and values for all tokens, whose keys change as a text grows, or whose
        logits are others when a text is read in pieces.
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
            import transformers  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f'PrefixCache needs transformers: pip install "kvpredict[llm]" ({error})') from error
        if any(window is not None for window in attention_windows(model, "PrefixCache")):
            raise KvpredictError("PrefixCache needs full attention in every layer, this model has sliding windows")
        if rope := moving_rope(model):
            raise KvpredictError(
                f"PrefixCache cannot serve a model whose rotation of positions is {rope!r}: it changes with the length "
                "of the text, and with it the keys of a prefix"
            )
        if model.training:
            raise KvpredictError("the model is in training mode, in which answers are random: call model.eval()")
        self.index = PrefixIndex(
            capacity, policy, host_capacity=host_capacity, requests=requests, background=background
        )
        parts = parts_of(model, self.block_size, "PrefixCache")
        self.model = model
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)
        self._longest = last_position(model)
        self._most = whole_number("requests", requests)
        self.store = BlockStore(self.index, KVPool(parts, self.index.capacity, self.index.host_capacity))
        self.prompt_tokens = self.cached_tokens = 0

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
        given = params if params is not None else [None] * len(checked)
        hints = [hints_of(free) for free in given]
        named = given if sessions is None else [{"session": session} for session in sessions]
        asked = list(zip(checked, map(session_of, named), hints, strict=True))
        return self.store.turn(lambda: self._answers(asked, max_new_tokens, eos, keep_logits))

    def clear(self) -> None:
        """Forget all blocks.

        Call it whenever the model's weights have changed in place (a training step, ``load_state_dict``, an adapter
        merged or switched, quantisation): the keys and values of the old ones would be served. What a learned policy
        knows of the requests stays.
        """
        self.store.turn(self.store.clear)

    def _answers(self, asked: Sequence[_Asked], most: int, eos: int | None, keep_logits: bool) -> list[Answer]:
        """Answer as many prompts at once as there may be requests in progress."""
        answers: list[Answer] = []
        with self._torch.inference_mode():
            for first in range(0, len(asked), self._most):
                running = []
                for prompt, session, hints in asked[first : first + self._most]:
                    request = self._start(prompt, session, hints)
                    running.append(request)
                    self._step(request, prompt[request.known :], keep_logits)
                    self._offer(request)  # so that the next prompt finds it
                active = running
                for _ in range(most - 1):
                    active = [r for r in active if r.output[-1] != eos]
                    for request in active:  # one forward a request: the prompts' lengths differ
                        self._step(request, request.output[-1:], keep_logits)
                for request in running:
                    self._end(request)
                    logits = self._torch.stack(request.logits) if keep_logits else None
                    answers.append(Answer(request.output, len(request.prompt), request.known, logits))
        return answers

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
        ticket, device, host = self.store.begin(
            blocks.tolist(), len(prompt), session=session, hints=hints, block_size=self.block_size
        )
        # The last token is computed in any case.
        nodes = self.store.found(ticket, min(device + host, (len(prompt) - 1) // self.block_size))
        found = len(nodes)
        cache = joined(self.store.read(nodes)) if found else new_cache()
        self.prompt_tokens += len(prompt)
        self.cached_tokens += found * self.block_size
        return _Request(prompt, ticket, cache, found * self.block_size, session)

    def _step(self, request: _Request, tokens: list[int], keep_logits: bool) -> None:
        last = forward(self.model, tokens, request.cache)[0]
        request.output.append(int(last.argmax()))
        if keep_logits:
            request.logits.append(last.clone())

    def _end(self, request: _Request) -> None:
        """Offer the request's full blocks to the cache."""
        # The last token generated has no keys and values yet.
        tokens = [*request.prompt, *request.output[:-1]]
        blocks = block_hashes(tokens, self.block_size).tolist()
        prompt = len(request.prompt) // self.block_size
        self.store.end(request.ticket, blocks[prompt:], len(request.output))
        self._offer(request)

    def _offer(self, request: _Request) -> None:
        """Store those of the request's blocks that the index has made room for."""
        size, nodes = self.block_size, self.store.nodes(request.ticket)
        self.store.settle({node: partial(cut, request.cache, k * size, (k + 1) * size) for k, node in enumerate(nodes)})
