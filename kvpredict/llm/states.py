"""StateCache: the states of a recurrent model, cached by prefix.

An LSTM's or GRU's state after a block stands for all tokens up to there, so the deepest cached block of a prompt is
enough to go on from, whereas attention needs all of them. The same index and pool serve; a slot holds one state.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError
from kvpredict.llm.block_store import BlockStore
from kvpredict.llm.blocks import block_hashes, token_ids
from kvpredict.llm.kv_pool import KVPool, Part, torch_module
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["StateCache"]


class StateCache:
    """A cache of recurrent states, which threads may share: they take turns at ``run``.

    An error in ``run``, an interrupt included, reaches the caller; what it left half done is forgotten, and the rest is
    served on. An interrupt within the index's own books empties the cache, and a learned policy forgets what it has
    learned since it was given. After a change of the weights, ``embed``'s included, call ``clear``.

    Parameters
    ----------
    rnn : torch.nn.LSTM, torch.nn.GRU or torch.nn.RNN
        With ``batch_first=True`` and one direction.
    embed : callable
        From token ids ``[1, t]`` to inputs ``[1, t, features]``.
    capacity, host_capacity : int
        States on the device and in host memory.
    block_size : int, default 16
        Tokens between cached states.
    policy : str, path or PrefixPolicy, default "lru"
    """

    def __init__(
        self,
        rnn: Any,
        embed: Any,
        capacity: int,
        *,
        host_capacity: int = 0,
        block_size: int = 16,
        policy: str | Path | PrefixPolicy = "lru",
    ) -> None:
        self._torch = torch_module()
        self.block_size = whole_number("block_size", block_size)
        if not isinstance(rnn, self._torch.nn.RNNBase):
            raise KvpredictError(f"StateCache needs an LSTM, a GRU or an RNN of torch.nn, got {type(rnn).__name__}")
        if not rnn.batch_first or rnn.bidirectional:
            raise KvpredictError("StateCache needs a recurrent model with batch_first=True and one direction")
        if not callable(embed):
            raise KvpredictError(f"embed must be a callable from token ids to inputs, got {type(embed).__name__}")
        weight = next(rnn.parameters())
        self.rnn, self.embed = rnn, embed
        hidden = (rnn.num_layers, 1, getattr(rnn, "proj_size", 0) or rnn.hidden_size)
        self._device = weight.device
        self._pair = isinstance(rnn, self._torch.nn.LSTM)
        shapes = [hidden, (rnn.num_layers, 1, rnn.hidden_size)] if self._pair else [hidden]
        self.index = PrefixIndex(capacity, policy, host_capacity=host_capacity)
        parts = [Part(shape, weight.dtype, weight.device) for shape in shapes]
        self.store = BlockStore(self.index, KVPool(parts, self.index.capacity, self.index.host_capacity))
        self.prompt_tokens = self.cached_tokens = 0

    def run(self, tokens: Sequence[int]) -> tuple[Any, Any]:
        """Return the outputs of the tokens that had to be computed, ``[1, t, hidden]``, and the state after the last.

        The last token is always computed.
        """
        tokens = token_ids("tokens", tokens)
        if not tokens:
            raise KvpredictError("run needs one token at least")
        if self.rnn.training and self.rnn.dropout:
            raise KvpredictError("the model is in training mode, in which answers are random: call rnn.eval()")
        return self.store.turn(lambda: self._computed(tokens))

    def clear(self) -> None:
        """Forget all states: call it whenever the weights of the model or of ``embed`` have changed in place."""
        self.store.turn(self.store.clear)

    def _computed(self, tokens: list[int]) -> tuple[Any, Any]:
        blocks = block_hashes(tokens, self.block_size)
        with self._torch.inference_mode():
            ticket, device, host = self.store.begin(blocks.tolist(), len(tokens))
            nodes = self.store.nodes(ticket)
            found = len(self.store.found(ticket, min(device + host, (len(tokens) - 1) // self.block_size)))
            state = None
            if found:
                parts = [value[0] for value in self.store.read(nodes[found - 1 : found])]
                state = tuple(parts) if self._pair else parts[0]
            outputs: list[Any] = []
            fresh: dict[int, partial[list[Any]]] = {}
            for k in range(found, -(-len(tokens) // self.block_size)):
                piece = tokens[k * self.block_size : (k + 1) * self.block_size]
                ids = self._torch.tensor([piece], device=self._device)
                out, state = self.rnn(self._embedded(ids), state)
                outputs.append(out)
                if k < len(nodes):
                    fresh[nodes[k]] = partial(list, state if self._pair else [state])
            self.store.end(ticket)
            self.store.settle(fresh)
            self.prompt_tokens += len(tokens)
            self.cached_tokens += found * self.block_size
            return self._torch.cat(outputs, dim=1), state

    def _embedded(self, ids: Any) -> Any:
        """Return the inputs of tokens; KvpredictError where ``embed`` does not know them, or gives no such inputs."""
        try:
            inputs = self.embed(ids)
        except IndexError as error:
            raise KvpredictError(f"embed does not know one of the tokens {ids[0].tolist()}: {error}") from error
        wanted = (1, ids.shape[1], self.rnn.input_size)
        if tuple(getattr(inputs, "shape", ())) != wanted:
            found = f"shape {tuple(inputs.shape)}" if hasattr(inputs, "shape") else type(inputs).__name__
            raise KvpredictError(f"embed must return inputs of shape {wanted}, as the model reads them, got {found}")
        return inputs
